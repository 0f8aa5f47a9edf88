# The string of UTF-8 that the reactor has checked, so that it need not be checked again.
from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memcpy

from ..base.utf8 cimport wk_utf8_decode1, wk_utf8_decode2, wk_utf8_decode4, wk_utf8_measure

cdef extern from "Python.h":
    str PyUnicode_New(Py_ssize_t size, Py_UCS4 greatest)
    void *PyUnicode_DATA(str text)


cdef inline str text_of(const char *data, Py_ssize_t n):
    cdef const unsigned char *utf8 = <const unsigned char *>data
    cdef unsigned char greatest
    cdef Py_ssize_t count = wk_utf8_measure(utf8, n, &greatest)
    cdef str text
    # A string is as wide as its widest character. Two bytes that begin with C2 and C3 are
    # those up to U+00FF, and four bytes those beyond U+FFFF.
    if greatest < 0x80:
        text = PyUnicode_New(count, 0x7F)
        memcpy(PyUnicode_DATA(text), utf8, n)
    elif greatest < 0xC4:
        text = PyUnicode_New(count, 0xFF)
        wk_utf8_decode1(utf8, n, <unsigned char *>PyUnicode_DATA(text))
    elif greatest < 0xF0:
        text = PyUnicode_New(count, 0xFFFF)
        wk_utf8_decode2(utf8, n, <uint16_t *>PyUnicode_DATA(text))
    else:
        text = PyUnicode_New(count, 0x10FFFF)
        wk_utf8_decode4(utf8, n, <uint32_t *>PyUnicode_DATA(text))
    return text
