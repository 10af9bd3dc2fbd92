/* Sleep. A WASI command: `sleep SECONDS` writes "sleeping N s", sleeps, and writes "awake".
 *
 * Convention: `_start`, arguments and standard streams. `nanosleep` becomes one `poll_oneoff`, a
 * host call that no interrupt inside the engine reaches: at the deadline the process is killed, and
 * what was written before must still come back. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv) {
    char *end = "";
    errno = 0;
    long seconds = argc == 2 ? strtol(argv[1], &end, 10) : -1;
    if (seconds < 0 || errno || *end || end == argv[1]) {
        fputs("usage: sleep SECONDS\n", stderr);
        return 2;
    }
    printf("sleeping %ld s\n", seconds);
    fflush(stdout);
    if (nanosleep(&(struct timespec){.tv_sec = seconds}, NULL) != 0) {
        perror("nanosleep");
        return 1;
    }
    puts("awake");
    return 0;
}
