"""Mailboxes. Their rules stand in mailbox.pxd."""
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free

from trio_wknet._native.atomics cimport (
    wk_ptr_cas, wk_ptr_exchange, wk_ptr_load_relaxed,
    wk_u32_exchange, wk_u32_or,
)


cdef bint letter_mark(Letter *letter, uint32_t bits) noexcept nogil:
    """Add bits; True if the caller must now queue the letter."""
    return wk_u32_or(&letter.bits, bits) == 0


cdef uint32_t letter_take(Letter *letter) noexcept nogil:
    """Take all bits. The letter may be queued again from this moment on, so its
    `next` must have been read before."""
    return wk_u32_exchange(&letter.bits, 0)


cdef void mailbox_push(Mailbox *box, Letter *newest, Letter *oldest) noexcept nogil:
    """Push a chain, newest first. The release of the compare-and-swap publishes
    the links and everything the sender wrote before."""
    cdef void *head = wk_ptr_load_relaxed(&box.head)
    while True:
        oldest.next = <Letter *>head
        if wk_ptr_cas(&box.head, &head, newest):
            return


cdef Letter *mailbox_take(Mailbox *box) noexcept nogil:
    """Take everything, oldest first."""
    cdef Letter *letter = <Letter *>wk_ptr_exchange(&box.head, NULL)
    cdef Letter *ordered = NULL
    cdef Letter *following
    while letter != NULL:
        following = letter.next
        letter.next = ordered
        ordered = letter
        letter = following
    return ordered


cdef bint mailbox_waiting(Mailbox *box) noexcept nogil:
    return wk_ptr_load_relaxed(&box.head) != NULL


cdef void batch_add(Batch *batch, Letter *letter) noexcept nogil:
    letter.next = batch.newest
    batch.newest = letter
    if batch.oldest == NULL:
        batch.oldest = letter


cdef bint batch_send(Batch *batch, Mailbox *box) noexcept nogil:
    """Send what was gathered; False if that was nothing."""
    if batch.newest == NULL:
        return False
    mailbox_push(box, batch.newest, batch.oldest)
    batch.newest = NULL
    batch.oldest = NULL
    return True


cdef class LetterBox:
    """A mailbox with a Python face, for tests: `count` letters, by number."""
    cdef Mailbox _box
    cdef Letter *_letters
    cdef Batch _batch
    cdef int _count

    def __cinit__(self, int count):
        self._letters = <Letter *>calloc(count, sizeof(Letter))
        if self._letters == NULL:
            raise MemoryError
        self._count = count

    def __dealloc__(self):
        free(self._letters)

    cdef Letter *_letter(self, int number) except NULL:
        if not 0 <= number < self._count:
            raise IndexError(number)
        return &self._letters[number]

    def post(self, int number, uint32_t bits):
        """Add bits to a letter and queue it if need be, as one sender."""
        cdef Letter *letter = self._letter(number)
        cdef bint queued
        with nogil:
            queued = letter_mark(letter, bits)
            if queued:
                mailbox_push(&self._box, letter, letter)
        return queued

    def post_many(self, int number, uint32_t bits, int times):
        """The same so many times, letting nobody in between by the GIL; returns
        how often the letter was queued."""
        cdef Letter *letter = self._letter(number)
        cdef int i, queued = 0
        with nogil:
            for i in range(times):
                if letter_mark(letter, bits):
                    mailbox_push(&self._box, letter, letter)
                    queued += 1
        return queued

    def gather(self, int number, uint32_t bits):
        """The same, but into the batch that `send` sends."""
        cdef Letter *letter = self._letter(number)
        if letter_mark(letter, bits):
            batch_add(&self._batch, letter)

    def send(self):
        return batch_send(&self._batch, &self._box)

    def waiting(self):
        return mailbox_waiting(&self._box)

    def take(self):
        """All (number, bits), oldest letter first."""
        cdef Letter *letter = mailbox_take(&self._box)
        cdef Letter *following
        taken = []
        while letter != NULL:
            following = letter.next
            taken.append((letter - self._letters, letter_take(letter)))
            letter = following
        return taken
