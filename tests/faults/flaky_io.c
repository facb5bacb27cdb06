/* Makes calls of the C library fail below some directories; loaded with LD_PRELOAD.
 *
 * native_flaky.py compiles it and describes the variables. A call on a path or an open file below
 * one of the directories of FLAKY_ROOTS fails with one of the errors of FLAKY_ERRORS, in FLAKY_RATE
 * of the calls that FLAKY_CALLS names. The draws depend on FLAKY_SEED and the process. The failures
 * are counted in the file FLAKY_COUNTS, a row of 64-bit numbers that processes share. While the
 * file FLAKY_SWITCH exists, nothing fails.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN, CREATE, READ, PREAD, FSTAT, STAT, LIST, MMAP, FSYNC, RENAME, CALLS };

static const char *const names[CALLS] = {"open", "create", "read", "pread",  "fstat",
                                         "stat", "list",   "mmap", "fsync", "rename"};

#define MOST_FDS 4096
#define MOST_ROOTS 16

static unsigned char below[MOST_FDS]; /* open files below a root */
static char *roots[MOST_ROOTS];
static int errors[32], error_count, enabled[CALLS], ready;
static double rate;
static uint64_t state;
static uint64_t *counts;
static const char *switch_file;

#define REAL(result, name, ...)                                                                    \
    static result (*real)(__VA_ARGS__);                                                            \
    if (!real)                                                                                     \
    real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static int call_number(const char *name)
{
    for (int n = 0; n < CALLS; n++)
        if (!strcmp(names[n], name))
            return n;
    return -1;
}

static void map_counts(const char *path)
{
    int (*real_open)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
    void *(*real_mmap)(void *, size_t, int, int, int, off_t) =
        (void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap");
    int fd = real_open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    void *found = real_mmap(NULL, CALLS * sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    counts = found == MAP_FAILED ? NULL : found;
}

__attribute__((constructor)) static void start(void)
{
    const char *about = getenv("FLAKY_ROOTS");
    if (!about || !getenv("FLAKY_RATE") || !getenv("FLAKY_ERRORS") || !getenv("FLAKY_CALLS"))
        return;
    int n = 0;
    char *copy = strdup(about), *rest = copy, *word;
    while (n < MOST_ROOTS && (word = strsep(&rest, ":")))
        if (*word)
            roots[n++] = word;
    rate = atof(getenv("FLAKY_RATE"));
    copy = rest = strdup(getenv("FLAKY_ERRORS"));
    while (error_count < 32 && (word = strsep(&rest, ",")))
        errors[error_count++] = atoi(word);
    copy = rest = strdup(getenv("FLAKY_CALLS"));
    while ((word = strsep(&rest, ",")))
        if ((n = call_number(word)) >= 0)
            enabled[n] = 1;
    const char *seed = getenv("FLAKY_SEED");
    state = (seed ? strtoull(seed, NULL, 10) : 0) * 0x9E3779B97F4A7C15u + (uint64_t)getpid();
    switch_file = getenv("FLAKY_SWITCH");
    if (getenv("FLAKY_COUNTS"))
        map_counts(getenv("FLAKY_COUNTS"));
    ready = error_count > 0;
}

/* splitmix64; two threads that race only change which call fails. */
static uint64_t draw(void)
{
    uint64_t x = __atomic_add_fetch(&state, 0x9E3779B97F4A7C15u, __ATOMIC_RELAXED);
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static int is_below(const char *path)
{
    for (int n = 0; n < MOST_ROOTS && roots[n]; n++) {
        size_t length = strlen(roots[n]);
        if (!strncmp(path, roots[n], length) && (path[length] == '/' || !path[length]))
            return 1;
    }
    return 0;
}

static int path_of(int fd, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return length > 0;
}

/* Whether a path, relative to an open directory, lies below a root. */
static int path_is_below(int directory, const char *path)
{
    char whole[2 * PATH_MAX];
    if (!ready || !path)
        return 0;
    if (path[0] == '/')
        return is_below(path);
    if (directory == AT_FDCWD) {
        if (!getcwd(whole, PATH_MAX))
            return 0;
    } else if (!path_of(directory, whole))
        return 0;
    size_t length = strlen(whole);
    snprintf(whole + length, PATH_MAX, "/%s", path);
    return is_below(whole);
}

/* Whether a call of this kind is drawn to fail. */
static int is_drawn(int call)
{
    return enabled[call] && draw() / 18446744073709551616.0 < rate;
}

/* Count a failure and set errno, unless the switch is off. */
static int fail(int call)
{
    if (switch_file && !access(switch_file, F_OK))
        return 0;
    if (counts)
        __atomic_add_fetch(&counts[call], 1, __ATOMIC_RELAXED);
    errno = errors[draw() % error_count];
    return 1;
}

static int path_fails(int directory, const char *path, int call)
{
    return path_is_below(directory, path) && is_drawn(call) && fail(call);
}

static int file_fails(int fd, int call)
{
    char path[PATH_MAX];
    if (!ready || fd < 0 || fd >= MOST_FDS || !below[fd] || !is_drawn(call))
        return 0;
    /* The number may belong to another file by now: the C library closes files without close(). */
    if (!path_of(fd, path) || !is_below(path))
        return below[fd] = 0;
    return fail(call);
}

/* For a process that changes its own failures, with ctypes; the kinds of calls are bits. */
void flaky_set(const char *root, double new_rate, int error, unsigned calls)
{
    roots[0] = strdup(root);
    rate = new_rate;
    errors[0] = error;
    error_count = 1;
    for (int n = 0; n < CALLS; n++)
        enabled[n] = calls >> n & 1;
    ready = 1;
}

static int opened(int fd, int is_flaky)
{
    if (fd >= 0 && fd < MOST_FDS)
        below[fd] = is_flaky;
    return fd;
}

static int kind_of(int flags)
{
    return (flags & O_ACCMODE) == O_RDONLY && !(flags & O_CREAT) ? OPEN : CREATE;
}

#define MODE(flags, last)                                                                          \
    mode_t mode = 0;                                                                               \
    if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) {                                 \
        va_list list;                                                                              \
        va_start(list, last);                                                                      \
        mode = va_arg(list, mode_t);                                                               \
        va_end(list);                                                                              \
    }

#define OPEN_PATH(symbol)                                                                          \
    int symbol(const char *path, int flags, ...)                                                   \
    {                                                                                              \
        REAL(int, #symbol, const char *, int, ...);                                                \
        MODE(flags, flags)                                                                         \
        int is_flaky = path_is_below(AT_FDCWD, path);                                              \
        if (is_flaky && is_drawn(kind_of(flags)) && fail(kind_of(flags)))                          \
            return -1;                                                                             \
        return opened(real(path, flags, mode), is_flaky);                                          \
    }
OPEN_PATH(open)
OPEN_PATH(open64)

#define OPEN_AT(symbol)                                                                            \
    int symbol(int directory, const char *path, int flags, ...)                                    \
    {                                                                                              \
        REAL(int, #symbol, int, const char *, int, ...);                                           \
        MODE(flags, flags)                                                                         \
        int is_flaky = path_is_below(directory, path);                                             \
        if (is_flaky && is_drawn(kind_of(flags)) && fail(kind_of(flags)))                          \
            return -1;                                                                             \
        return opened(real(directory, path, flags, mode), is_flaky);                               \
    }
OPEN_AT(openat)
OPEN_AT(openat64)

int close(int fd)
{
    REAL(int, "close", int);
    opened(fd, 0);
    return real(fd);
}

ssize_t read(int fd, void *buffer, size_t size)
{
    REAL(ssize_t, "read", int, void *, size_t);
    return file_fails(fd, READ) ? -1 : real(fd, buffer, size);
}

#define PREAD_FILE(symbol, offset_t)                                                               \
    ssize_t symbol(int fd, void *buffer, size_t size, offset_t offset)                             \
    {                                                                                              \
        REAL(ssize_t, #symbol, int, void *, size_t, offset_t);                                     \
        return file_fails(fd, PREAD) ? -1 : real(fd, buffer, size, offset);                        \
    }
PREAD_FILE(pread, off_t)
PREAD_FILE(pread64, off64_t)

#define PREADV_FILE(symbol, offset_t)                                                              \
    ssize_t symbol(int fd, const struct iovec *parts, int count, offset_t offset)                  \
    {                                                                                              \
        REAL(ssize_t, #symbol, int, const struct iovec *, int, offset_t);                          \
        return file_fails(fd, PREAD) ? -1 : real(fd, parts, count, offset);                        \
    }
PREADV_FILE(preadv, off_t)
PREADV_FILE(preadv64, off64_t)

#define FSTAT_FILE(symbol, buffer_t)                                                               \
    int symbol(int fd, buffer_t *status)                                                           \
    {                                                                                              \
        REAL(int, #symbol, int, buffer_t *);                                                       \
        return file_fails(fd, FSTAT) ? -1 : real(fd, status);                                      \
    }
FSTAT_FILE(fstat, struct stat)
FSTAT_FILE(fstat64, struct stat64)

#define STAT_PATH(symbol, buffer_t)                                                                \
    int symbol(const char *path, buffer_t *status)                                                 \
    {                                                                                              \
        REAL(int, #symbol, const char *, buffer_t *);                                              \
        return path_fails(AT_FDCWD, path, STAT) ? -1 : real(path, status);                         \
    }
STAT_PATH(stat, struct stat)
STAT_PATH(stat64, struct stat64)
STAT_PATH(lstat, struct stat)
STAT_PATH(lstat64, struct stat64)

#define STAT_AT(symbol, buffer_t)                                                                  \
    int symbol(int directory, const char *path, buffer_t *status, int flags)                       \
    {                                                                                              \
        REAL(int, #symbol, int, const char *, buffer_t *, int);                                    \
        return path_fails(directory, path, STAT) ? -1 : real(directory, path, status, flags);      \
    }
STAT_AT(fstatat, struct stat)
STAT_AT(fstatat64, struct stat64)

DIR *opendir(const char *path)
{
    REAL(DIR *, "opendir", const char *);
    return path_fails(AT_FDCWD, path, LIST) ? NULL : real(path);
}

#define MAP_PATH(symbol, offset_t)                                                                 \
    void *symbol(void *at, size_t size, int protection, int flags, int fd, offset_t offset)        \
    {                                                                                              \
        REAL(void *, #symbol, void *, size_t, int, int, int, offset_t);                            \
        if (!(flags & MAP_ANONYMOUS) && file_fails(fd, MMAP))                                      \
            return MAP_FAILED;                                                                     \
        return real(at, size, protection, flags, fd, offset);                                      \
    }
MAP_PATH(mmap, off_t)
MAP_PATH(mmap64, off64_t)

#define SYNC_FILE(symbol)                                                                          \
    int symbol(int fd)                                                                             \
    {                                                                                              \
        REAL(int, #symbol, int);                                                                   \
        return file_fails(fd, FSYNC) ? -1 : real(fd);                                              \
    }
SYNC_FILE(fsync)
SYNC_FILE(fdatasync)

int rename(const char *from, const char *to)
{
    REAL(int, "rename", const char *, const char *);
    return path_fails(AT_FDCWD, to, RENAME) ? -1 : real(from, to);
}

int renameat(int from_directory, const char *from, int to_directory, const char *to)
{
    REAL(int, "renameat", int, const char *, int, const char *);
    if (path_fails(to_directory, to, RENAME))
        return -1;
    return real(from_directory, from, to_directory, to);
}
