class SendBatch:
    threshold: int
