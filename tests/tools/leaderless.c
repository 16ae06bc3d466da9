/* Reads a file from a thread whose process has lost its main thread; prints its process id and what
 * it read.
 *
 * leaderless PATH */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int leader_is_gone(void) {
    char name[64], text[512];
    snprintf(name, sizeof name, "/proc/self/task/%d/stat", (int)getpid());
    int fd = open(name, O_RDONLY);
    ssize_t len = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    if (len <= 0)
        return 1;
    text[len] = 0;
    char *end = strrchr(text, ')');
    return end && end[2] == 'Z';
}

static void *reader(void *path) {
    while (!leader_is_gone())
        usleep(1000);
    char value[4096];
    int fd = open(path, O_RDONLY);
    ssize_t len = fd < 0 ? -1 : read(fd, value, sizeof value);
    if (len < 0) {
        perror("leaderless");
        exit(1);
    }
    printf("%d %.*s\n", (int)getpid(), (int)len, value);
    exit(0);
}

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    pthread_t thread;
    if (pthread_create(&thread, NULL, reader, argv[1]))
        return 1;
    pthread_exit(NULL);
}
