/* LD_PRELOAD shim of bench/faults.py: injects I/O faults and clock jumps into the calls of a process.
 *
 *   cc -shared -fPIC -O1 -o fault_shim.so bench/fault_shim.c -ldl
 *
 * FAULT_UNDER       faults hit files below this folder only; unset: none
 * FAULT_KIND        full: ENOSPC from the call FAULT_AT on; eio: EIO once; short: half of each write from there on;
 *                   hang: the call takes a second; count: nothing, calls are counted
 * FAULT_CLOCK_S     CLOCK_REALTIME jumps by so many seconds at its call FAULT_AT
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static long calls, clock_calls;

long fault_calls(void) { return calls; }

static int is_under(const char *path) {
  const char *folder = getenv("FAULT_UNDER");
  return folder && *folder && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int is_fd_under(int fd) {
  char link[64], path[4096];
  if (!getenv("FAULT_UNDER")) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n <= 0) return 0;
  path[n] = 0;
  return is_under(path);
}

/* Counts a call; returns the errno that it shall fail with, or 0. `size`: of a write, may be made shorter. */
static int fault(size_t *size) {
  const char *kind = getenv("FAULT_KIND"), *text = getenv("FAULT_AT");
  long call = __sync_add_and_fetch(&calls, 1), at = text ? atol(text) : 0;
  if (!kind || call < at) return 0;
  if (!strcmp(kind, "full")) return size ? ENOSPC : 0;
  if (!strcmp(kind, "short") && size && *size > 1) *size /= 2;
  if (call > at) return 0;
  if (!strcmp(kind, "eio")) return EIO;
  if (!strcmp(kind, "hang")) {
    struct timespec second = {1, 0};
    nanosleep(&second, NULL);
  }
  return 0;
}

#define FAIL_IF_DUE(under, size)          \
  if (under) {                            \
    int number = fault(size);             \
    if (number) {                         \
      errno = number;                     \
      return -1;                          \
    }                                     \
  }
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
  FAIL_IF_DUE(is_fd_under(fd), &size)
  return REAL(write)(fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  FAIL_IF_DUE(is_fd_under(fd), &size)
  return REAL(pwrite64)(fd, data, size, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  size_t size = 2;
  FAIL_IF_DUE(is_fd_under(fd), &size)
  return REAL(writev)(fd, parts, size < 2 && count > 1 ? count / 2 : count);
}

int fsync(int fd) {
  FAIL_IF_DUE(is_fd_under(fd), NULL)
  return REAL(fsync)(fd);
}

int rename(const char *from, const char *to) {
  FAIL_IF_DUE(is_under(to), NULL)
  return REAL(rename)(from, to);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  static __typeof__(&clock_gettime) real;
  if (!real) real = REAL(clock_gettime);
  int result = real(clock, now);
  if (clock == CLOCK_REALTIME && getenv("FAULT_CLOCK_S")) {
    const char *at = getenv("FAULT_AT");
    if (__sync_add_and_fetch(&clock_calls, 1) >= (at ? atol(at) : 0)) now->tv_sec += atol(getenv("FAULT_CLOCK_S"));
  }
  return result;
}
