/* Makes a process with a given id, which reads a file; prints what it got, or its error's number.
 *
 * same_id PID PATH
 *
 * It stands for the id that returns after all others have been used: clone3(2) with set_tid gives
 * it out at once. Needs CAP_CHECKPOINT_RESTORE. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    pid_t wanted = atoi(argv[1]);
    struct clone_args args = {
        .exit_signal = SIGCHLD,
        .set_tid = (uintptr_t)&wanted,
        .set_tid_size = 1,
    };
    pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
    if (pid < 0) {
        printf("clone3 errno %d\n", errno);
        return 0;
    }
    if (pid == 0) {
        char value[4096];
        int fd = open(argv[2], O_RDONLY);
        ssize_t len = fd < 0 ? -1 : read(fd, value, sizeof value);
        if (len < 0)
            printf("%d errno %d\n", (int)getpid(), errno);
        else
            printf("%d %.*s\n", (int)getpid(), (int)len, value);
        fflush(stdout);
        _exit(0);
    }
    waitpid(pid, NULL, 0);
    return 0;
}
