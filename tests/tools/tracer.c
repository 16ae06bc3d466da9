/* Seizes a process and never looks again. With a second argument its end is to be reported first: a
 * killed process then waits for its tracer before it is gone. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <unistd.h>

int main(int argc, char **argv) {
    pid_t pid = argc > 1 ? atoi(argv[1]) : 0;
    long options = argc > 2 ? PTRACE_O_TRACEEXIT : 0;
    if (ptrace(PTRACE_SEIZE, pid, NULL, (void *)options) != 0) {
        perror("PTRACE_SEIZE");
        return 1;
    }
    if (ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) != 0) {
        perror("PTRACE_INTERRUPT");
        return 1;
    }
    puts("traced");
    fflush(stdout);
    pause();
    return 0;
}
