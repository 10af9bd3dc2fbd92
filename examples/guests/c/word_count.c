/* Word count. A WASI command: standard input in, "lines words bytes" on standard output, as `wc`
 * prints them. Lines are newlines; words are what ASCII white space separates.
 *
 * Convention: `_start` and standard streams. This is an ordinary C program: wasi-libc turns `read`
 * and `printf` into imports of wasi_snapshot_preview1. */
#include <ctype.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

static unsigned char buffer[1 << 16];

int main(void) {
    uint64_t lines = 0, words = 0, bytes = 0;
    bool in_word = false;
    ssize_t count;
    while ((count = read(STDIN_FILENO, buffer, sizeof buffer)) > 0) {
        for (ssize_t i = 0; i < count; i++) {
            bool space = isspace(buffer[i]);
            lines += buffer[i] == '\n';
            words += !space && !in_word;
            in_word = !space;
        }
        bytes += (uint64_t)count;
    }
    if (count < 0) {
        perror("read");
        return 1;
    }
    printf("%" PRIu64 " %" PRIu64 " %" PRIu64 "\n", lines, words, bytes);
    return 0;
}
