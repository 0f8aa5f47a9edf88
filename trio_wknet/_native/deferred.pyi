class Deferred:
    crowd: int
