/* LD_PRELOAD: writes, syncs and truncations of the files in one folder fail as the test orders.

   FAILING_DISK_FOLDER is the folder, FAILING_DISK_ORDERS a file that holds a `struct orders`; both sides map it, so that
   an order counts from the very next call. tests/support/failing_disk.py is the other side. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

enum operation { WRITE = 1, SYNC = 2, TRUNCATE = 4 };
enum kind { NOTHING = 0, ERROR = 1, SHORT = 2, LIE = 3 };

struct orders {
    _Atomic int32_t kind;
    int32_t operations; /* a set of enum operation */
    int32_t error;      /* errno */
    int32_t unused;
    _Atomic int64_t pass;   /* so many calls are let through first */
    _Atomic int64_t times;  /* so many fail then */
    _Atomic int64_t struck; /* so many have failed */
};

static struct orders *orders;
static char folder[PATH_MAX];
static size_t folder_length;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAILING_DISK_ORDERS"), *where = getenv("FAILING_DISK_FOLDER");
    if (path == NULL || where == NULL || realpath(where, folder) == NULL)
        return;
    folder_length = strlen(folder);
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0)
        return;
    void *mapped = mmap(NULL, sizeof *orders, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED)
        orders = mapped;
}

/* Which kind of failure this call gets; NOTHING for nearly all. */
static enum kind strikes(int file, enum operation operation) {
    if (orders == NULL || orders->kind == NOTHING || !(orders->operations & operation))
        return NOTHING;
    int before = errno;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length <= (ssize_t)folder_length || memcmp(path, folder, folder_length) != 0 || path[folder_length] != '/')
        return NOTHING;
    enum kind kind = orders->kind;
    if (atomic_fetch_sub(&orders->pass, 1) > 0 || atomic_fetch_sub(&orders->times, 1) <= 0)
        return NOTHING;
    atomic_fetch_add(&orders->struck, 1);
    return kind;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define WRITING(name, parameters, full, half)                                                                          \
    ssize_t name parameters {                                                                                          \
        static __typeof__(&name) real;                                                                                 \
        if (real == NULL)                                                                                              \
            real = REAL(name);                                                                                         \
        switch (strikes(file, WRITE)) {                                                                                \
        case ERROR:                                                                                                    \
            errno = orders->error;                                                                                     \
            return -1;                                                                                                 \
        case SHORT:                                                                                                    \
            if (size > 1)                                                                                              \
                return real half;                                                                                      \
            break;                                                                                                     \
        default:                                                                                                       \
            break;                                                                                                     \
        }                                                                                                              \
        return real full;                                                                                              \
    }

WRITING(write, (int file, const void *data, size_t size), (file, data, size), (file, data, size / 2))
WRITING(pwrite, (int file, const void *data, size_t size, off_t at), (file, data, size, at), (file, data, size / 2, at))
WRITING(pwrite64, (int file, const void *data, size_t size, off64_t at), (file, data, size, at), (file, data, size / 2, at))

#define FAILING(name, parameters, operation, call)                                                                     \
    int name parameters {                                                                                              \
        static __typeof__(&name) real;                                                                                 \
        if (real == NULL)                                                                                              \
            real = REAL(name);                                                                                         \
        switch (strikes(file, operation)) {                                                                            \
        case ERROR:                                                                                                    \
            errno = orders->error;                                                                                     \
            return -1;                                                                                                 \
        case LIE:                                                                                                      \
            return 0;                                                                                                  \
        default:                                                                                                       \
            return real call;                                                                                          \
        }                                                                                                              \
    }

FAILING(fsync, (int file), SYNC, (file))
FAILING(fdatasync, (int file), SYNC, (file))
FAILING(ftruncate, (int file, off_t size), TRUNCATE, (file, size))
FAILING(ftruncate64, (int file, off64_t size), TRUNCATE, (file, size))
