/* Masking, which is done to every byte of a WebSocket message that a client sends.

   It works on words of eight bytes; memcpy is how one is read from, and written to, any
   address. */
#ifndef TRIO_WKNET_MASK_H
#define TRIO_WKNET_MASK_H

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

#endif
