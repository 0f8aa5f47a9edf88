from trio_wknet._native.trio.send import SendHalf

# The bytes from a to b and from b to a, the errno that broke a side or 0, and which one.
async def relay_native(a: SendHalf, b: SendHalf, buffer: int) -> tuple[int, int, int, int]: ...
