/* Reads a file by io_uring in three ways and by libaio's system calls; prints what each got.
 *
 * rings PATH
 * rings PATH shared    a child, which is told when to go on, reads by its parent's ring and file
 *
 * The rings are set up by raw system calls: no library is needed. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char buffer[65536];

struct ring {
    int fd;
    unsigned *sq_tail, *sq_mask, *sq_array;
    unsigned *cq_head, *cq_tail, *cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
};

static void *map(int fd, size_t size, off_t what) {
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, what);
    if (at == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    return at;
}

static int make(struct ring *r, unsigned flags) {
    struct io_uring_params p = {.flags = flags, .sq_thread_idle = 2000};
    r->fd = (int)syscall(SYS_io_uring_setup, 4, &p);
    if (r->fd < 0)
        return errno;
    char *sq = map(r->fd, p.sq_off.array + p.sq_entries * sizeof(unsigned), IORING_OFF_SQ_RING);
    char *cq = map(r->fd, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe),
                   IORING_OFF_CQ_RING);
    r->sqes = map(r->fd, p.sq_entries * sizeof(struct io_uring_sqe), IORING_OFF_SQES);
    r->sq_tail = (unsigned *)(sq + p.sq_off.tail);
    r->sq_mask = (unsigned *)(sq + p.sq_off.ring_mask);
    r->sq_array = (unsigned *)(sq + p.sq_off.array);
    r->cq_head = (unsigned *)(cq + p.cq_off.head);
    r->cq_tail = (unsigned *)(cq + p.cq_off.tail);
    r->cq_mask = (unsigned *)(cq + p.cq_off.ring_mask);
    r->cqes = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
    return 0;
}

static int submit(struct ring *r, int file, unsigned setup, unsigned char flags) {
    unsigned tail = *r->sq_tail, index = tail & *r->sq_mask;
    struct io_uring_sqe *sqe = &r->sqes[index];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = IORING_OP_READ;
    sqe->fd = file;
    sqe->addr = (unsigned long)buffer;
    sqe->len = sizeof buffer;
    sqe->flags = flags;
    r->sq_array[index] = index;
    atomic_store_explicit((_Atomic unsigned *)r->sq_tail, tail + 1, memory_order_release);
    unsigned enter = IORING_ENTER_GETEVENTS;
    if (setup & IORING_SETUP_SQPOLL)
        enter |= IORING_ENTER_SQ_WAKEUP;
    while (atomic_load_explicit((_Atomic unsigned *)r->cq_tail, memory_order_acquire) ==
           *r->cq_head) {
        if (syscall(SYS_io_uring_enter, r->fd, 1, 1, enter, NULL, 0) < 0 && errno != EINTR)
            return -errno;
    }
    int result = r->cqes[*r->cq_head & *r->cq_mask].res;
    atomic_store_explicit((_Atomic unsigned *)r->cq_head, *r->cq_head + 1, memory_order_release);
    return result;
}

static int ring_read(int file, unsigned setup, unsigned char flags) {
    struct ring r = {.fd = -1};
    int failed = make(&r, setup);
    if (failed)
        return -failed;
    int result = submit(&r, file, setup, flags);
    close(r.fd);
    return result;
}

static int aio_read(int file) {
    aio_context_t context = 0;
    if (syscall(SYS_io_setup, 4, &context) < 0)
        return -errno;
    struct iocb block = {.aio_fildes = (unsigned)file,
                         .aio_lio_opcode = IOCB_CMD_PREAD,
                         .aio_buf = (unsigned long)buffer,
                         .aio_nbytes = sizeof buffer};
    struct iocb *blocks[1] = {&block};
    if (syscall(SYS_io_submit, context, 1, blocks) != 1)
        return -errno;
    struct io_event event;
    if (syscall(SYS_io_getevents, context, 1, 1, &event, NULL) != 1)
        return -errno;
    syscall(SYS_io_destroy, context);
    return (int)event.res;
}

static void tell(const char *how, int result) {
    if (result < 0)
        printf("%s errno %d\n", how, -result);
    else
        printf("%s %.*s\n", how, result, buffer);
    memset(buffer, 0, sizeof buffer);
}

static int shared(int file) {
    struct ring r = {.fd = -1};
    int failed = make(&r, 0);
    if (failed) {
        printf("setup errno %d\n", failed);
        return 1;
    }
    pid_t child = fork();
    if (child == 0) {
        char line[16];
        printf("child %d\n", getpid());
        fflush(stdout);
        if (fgets(line, sizeof line, stdin) == NULL)
            _exit(1);
        tell("inline", submit(&r, file, 0, 0));
        tell("worker", submit(&r, file, 0, IOSQE_ASYNC));
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    tell("parent", submit(&r, file, 0, 0));
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 2)
        return 2;
    int file = open(argv[1], O_RDONLY);
    if (file < 0) {
        perror(argv[1]);
        return 1;
    }
    if (argc > 2)
        return shared(file);
    tell("inline", ring_read(file, 0, 0));
    tell("worker", ring_read(file, 0, IOSQE_ASYNC));
    tell("poller", ring_read(file, IORING_SETUP_SQPOLL, 0));
    tell("aio", aio_read(file));
    return 0;
}
