/* Loaded before libc (LD_PRELOAD): calls that change what stands under a folder are counted, logged,
 * and from a certain one on they fail, once or for good. Built by disk.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char prefix[PATH_MAX];
static long calls, fail_at;
static int error, for_good, log_fd = -1;

/* From here on: call number `at` (1 the first; 0: none) fails with errno `number`, or where that is 0
 * writes half of what it was given. `good`: and so does every later one that needs what is lacking. */
void faults_begin(const char *folder, long at, int number, int good, int fd)
{
    strncpy(prefix, folder, sizeof prefix - 1);
    calls = 0, fail_at = at, error = number, for_good = good, log_fd = fd;
}

/* Whether this call, `op` on `path`, fails; errno is set. A full disk still renames, removes and
 * shortens. `half`: it is a write, and may be cut short. */
static int fails(const char *op, const char *path, int *half)
{
    char full[PATH_MAX], line[PATH_MAX + 32];
    if (log_fd < 0 || !path)
        return 0;
    if (path[0] != '/' && getcwd(full, sizeof full)) {
        strncat(full, "/", sizeof full - strlen(full) - 1);
        strncat(full, path, sizeof full - strlen(full) - 1);
        path = full;
    }
    if (strncmp(path, prefix, strlen(prefix)))
        return 0;
    calls++;
    int size = snprintf(line, sizeof line, "%s\t%s\n", op, path + strlen(prefix));
    syscall(SYS_write, log_fd, line, size);
    int frees = !strcmp(op, "rename") || !strcmp(op, "unlink") || !strcmp(op, "rmdir") || !strcmp(op, "truncate");
    int later = for_good && calls > fail_at && fail_at && !(error == ENOSPC && (frees || !strcmp(op, "fsync")))
                && !(error == EROFS && !strcmp(op, "fsync"));
    if (calls != fail_at && !later)
        return 0;
    if (!error) {
        if (half)
            *half = 1;
        return 0;
    }
    errno = error;
    return 1;
}

static const char *of_handle(int fd, char *name)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, name, PATH_MAX - 1);
    if (size < 0)
        return NULL;
    name[size] = 0;
    return name;
}

static const char *at(int folder, const char *path, char *name)
{
    char whole[PATH_MAX];
    if (!path || path[0] == '/' || folder == AT_FDCWD)
        return path;
    if (!of_handle(folder, whole))
        return path;
    snprintf(name, PATH_MAX, "%s/%s", whole, path);
    return name;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OPEN(name)                                                          \
    int name(const char *path, int flags, ...)                              \
    {                                                                       \
        va_list rest;                                                       \
        va_start(rest, flags);                                              \
        mode_t mode = va_arg(rest, mode_t);                                 \
        va_end(rest);                                                       \
        REAL(name);                                                         \
        if ((flags & (O_CREAT | O_WRONLY | O_RDWR)) && fails("open", path, NULL)) \
            return -1;                                                      \
        return real(path, flags, mode);                                     \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                        \
    int name(int folder, const char *path, int flags, ...)                  \
    {                                                                       \
        char whole[PATH_MAX];                                               \
        va_list rest;                                                       \
        va_start(rest, flags);                                              \
        mode_t mode = va_arg(rest, mode_t);                                 \
        va_end(rest);                                                       \
        REAL(name);                                                         \
        if ((flags & (O_CREAT | O_WRONLY | O_RDWR)) && fails("open", at(folder, path, whole), NULL)) \
            return -1;                                                      \
        return real(folder, path, flags, mode);                             \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size)
{
    char name[PATH_MAX];
    int half = 0;
    REAL(write);
    if (fd > 2 && fails("write", of_handle(fd, name), &half))
        return -1;
    return real(fd, data, half && size > 1 ? size / 2 : size);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    char name[PATH_MAX];
    int half = 0;
    REAL(writev);
    if (fd > 2 && fails("write", of_handle(fd, name), &half))
        return -1;
    return half ? write(fd, parts[0].iov_base, parts[0].iov_len) : real(fd, parts, count);
}

#define ON_HANDLE(name, op, type)                        \
    int name(int fd type)                                \
    {                                                    \
        char path[PATH_MAX];                             \
        REAL(name);                                      \
        if (fails(op, of_handle(fd, path), NULL))        \
            return -1;                                   \
        return real(fd VALUE);                           \
    }
#define COMMA ,
#define VALUE
ON_HANDLE(fsync, "fsync", )
ON_HANDLE(fdatasync, "fsync", )
#undef VALUE
#define VALUE , size
ON_HANDLE(ftruncate, "truncate", COMMA off_t size)
ON_HANDLE(ftruncate64, "truncate", COMMA off64_t size)

int rename(const char *old, const char *new)
{
    REAL(rename);
    return fails("rename", new, NULL) ? -1 : real(old, new);
}

int renameat(int from, const char *old, int to, const char *new)
{
    char whole[PATH_MAX];
    REAL(renameat);
    return fails("rename", at(to, new, whole), NULL) ? -1 : real(from, old, to, new);
}

int symlink(const char *target, const char *path)
{
    REAL(symlink);
    return fails("symlink", path, NULL) ? -1 : real(target, path);
}

int mkdir(const char *path, mode_t mode)
{
    REAL(mkdir);
    return fails("mkdir", path, NULL) ? -1 : real(path, mode);
}

int unlink(const char *path)
{
    REAL(unlink);
    return fails("unlink", path, NULL) ? -1 : real(path);
}

int unlinkat(int folder, const char *path, int flags)
{
    char whole[PATH_MAX];
    REAL(unlinkat);
    return fails(flags & AT_REMOVEDIR ? "rmdir" : "unlink", at(folder, path, whole), NULL) ? -1 : real(folder, path, flags);
}

int rmdir(const char *path)
{
    REAL(rmdir);
    return fails("rmdir", path, NULL) ? -1 : real(path);
}
