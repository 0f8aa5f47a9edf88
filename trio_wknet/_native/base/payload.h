/* What is done to every byte of a WebSocket message: masking, and the check of UTF-8.

   Both work on words of eight bytes where they can; memcpy is how one is read from, and
   written to, any address. */
#ifndef TRIO_WKNET_PAYLOAD_H
#define TRIO_WKNET_PAYLOAD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Copy `n` bytes to `out`, each combined with the byte of the key whose turn it is: the
   first with key[phase % 4]. Masking and unmasking are the same (RFC 6455, 5.3). A key of
   zeros copies. */
static inline void wk_mask(unsigned char *out, const unsigned char *in, size_t n,
                           const unsigned char *key, unsigned phase)
{
    unsigned char turned[32];
    uint64_t words[4], at[4];
    size_t i = 0;
    for (int j = 0; j < 32; j++)
        turned[j] = key[(phase + (unsigned)j) & 3];
    memcpy(words, turned, sizeof(words));
    for (; i + 32 <= n; i += 32) {
        memcpy(at, in + i, 32);
        at[0] ^= words[0];
        at[1] ^= words[1];
        at[2] ^= words[2];
        at[3] ^= words[3];
        memcpy(out + i, at, 32);
    }
    for (; i + 8 <= n; i += 8) {
        memcpy(at, in + i, 8);
        at[0] ^= words[0];
        memcpy(out + i, at, 8);
    }
    for (int j = 0; i < n; i++, j++)
        out[i] = in[i] ^ turned[j];
}

/* A check of UTF-8 that goes on from piece to piece: how many bytes of a character are still
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

/* Whether text may go on like that. It is whole where `missing` is 0. */
static inline int wk_utf8_check(wk_utf8 *s, const unsigned char *p, size_t n)
{
    const unsigned char *end = p + n;
    uint64_t word;
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
        /* Most text is of these: ASCII, and characters of two and three bytes. */
        while (end - p >= 8) {
            if (*p < 0x80) {
                memcpy(&word, p, 8);
                p += (word & 0x8080808080808080u) ? 1 : 8;
            } else if (*p > 0xE0 && *p < 0xF0 && *p != 0xED) {
                if ((p[1] & 0xC0) != 0x80 || (p[2] & 0xC0) != 0x80)
                    return 0;
                p += 3;
            } else if (*p >= 0xC2 && *p < 0xE0) {
                if ((p[1] & 0xC0) != 0x80)
                    return 0;
                p += 2;
            } else {
                break;
            }
        }
        while (p != end && *p < 0x80)
            p++;
        if (p == end)
            return 1;
        if (!wk_utf8_begin(s, *p++))
            return 0;
    }
}

#endif
