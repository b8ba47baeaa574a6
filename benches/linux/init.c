// The first process of a stock Linux that runs in an emulator whose time stamp counter counts instructions (QEMU TCG, -icount shift=0):
// what faults, fork and unmapping cost there, by the order of the folios. The operations and the 64 MiB they work on are those of the
// bare-metal kernel's own benchmark.
//
//   fault    first store to a folio                                            a sample for each folio
//   fork     fork() of the space that holds them; the child is held meanwhile  one sample for all
//   cow      first store of the child to each folio                            a sample for each folio
//   reuse    first store of the parent to each when the child is gone          a sample for each folio
//   zap_one  MADV_DONTNEED of one page of each                                 a sample for each folio
//   unmap    munmap() of everything, freshly faulted in                        one sample for all
//
// One line of JSON for each on the console: the sample in the middle, how many folios it stands for, how many pages the operations
// copied (which pagemap tells), and the number of samples. To subtract there are fork_empty, a fork() with nothing of ours mapped, and
// zero_4k, what clearing a page costs. After each fault that everything has had, kpageflags must show folios of that order and of no other.
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define TOTAL (64ul << 20)
#define PAGES (TOTAL / PAGE)
#define HUGE (2ul << 20)
#define HUGE_PAGES (HUGE / PAGE)
// The first round warms up and is forgotten.
#define ROUNDS 4

enum { FAULT, FORK, COW, REUSE, ZAP_ONE, UNMAP, FORK_EMPTY, OPERATIONS };
static const char *const names[OPERATIONS] = {"fault", "fork", "cow", "reuse", "zap_one", "unmap", "fork_empty"};

// What the child sees too. A mapping that is shared costs a fork() nothing.
static struct shared {
    struct samples {
        size_t count, copied;
        uint64_t ticks[ROUNDS * PAGES];
    } samples[OPERATIONS];
    // Frame numbers by page, and flags of frames.
    uint64_t before[PAGES], now[PAGES], flags[HUGE_PAGES];
} *shared;
static const int orders[] = {0, 2, 4, 6, 8, 9};
#define ORDERS (sizeof orders / sizeof orders[0])

static void fail(const char *format, ...) {
    va_list list;
    va_start(list, format);
    printf("quire-linux: failed: ");
    vprintf(format, list);
    printf("\n");
    va_end(list);
    reboot(RB_POWER_OFF);
    _exit(1);
}

static inline uint64_t stamp(void) {
    uint32_t low, high;
    __asm__ volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

static void note(int operation, uint64_t ticks) {
    struct samples *samples = &shared->samples[operation];
    samples->ticks[samples->count++] = ticks;
}

static int ascending(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void report(int operation, int order, size_t folios) {
    struct samples *samples = &shared->samples[operation];
    size_t n = samples->count;
    if (n == 0) fail("no samples of %s at order %d", names[operation], order);
    qsort(samples->ticks, n, sizeof samples->ticks[0], ascending);
    printf("{\"op\":\"%s\",\"order\":%d,\"median\":%lu,\"p99\":%lu,\"folios\":%zu,\"copied\":%zu,\"samples\":%zu}\n", names[operation],
           order, samples->ticks[n / 2], samples->ticks[n * 99 / 100], folios, samples->copied, n);
}

static int open_file(const char *path, int flags) {
    int file = open(path, flags);
    if (file < 0) fail("cannot open %s", path);
    return file;
}

static void set(const char *path, const char *value) {
    int file = open_file(path, O_WRONLY);
    if (write(file, value, strlen(value)) != (ssize_t)strlen(value)) fail("cannot write %s to %s", value, path);
    close(file);
}

// The frames behind the pages, which are all there.
static void look_up(const uint8_t *at, uint64_t frames[PAGES]) {
    int file = open_file("/proc/self/pagemap", O_RDONLY);
    ssize_t size = PAGES * sizeof frames[0];
    if (pread(file, frames, size, (uintptr_t)at / PAGE * sizeof frames[0]) != size) fail("cannot read pagemap");
    close(file);
    for (size_t i = 0; i < PAGES; i++) {
        if (!(frames[i] >> 63)) fail("page %zu is not there", i);
        frames[i] &= (1ul << 55) - 1;
    }
}

// Pages whose frame is another one than at the last check.
static size_t moved(const uint8_t *at) {
    look_up(at, shared->now);
    size_t count = 0;
    for (size_t i = 0; i < PAGES; i++) count += shared->now[i] != shared->before[i];
    return count;
}

// Kibibytes that leaves of 2 MiB map.
static size_t in_huge_leaves(void) {
    FILE *file = fopen("/proc/self/smaps_rollup", "r");
    char line[256];
    size_t kib = 0;
    while (file && fgets(line, sizeof line, file)) {
        if (sscanf(line, "AnonHugePages: %zu", &kib) == 1) {
            fclose(file);
            return kib;
        }
    }
    fail("smaps_rollup does not tell AnonHugePages");
    return 0;
}

// Everything is there in folios of this order, naturally aligned; order 9 behind leaves of 2 MiB.
static void check(const uint8_t *at, int order) {
    const uint64_t head = 1ul << 15, tail = 1ul << 16;
    size_t folio = 1ul << order;
    look_up(at, shared->before);
    int file = open_file("/proc/kpageflags", O_RDONLY);
    for (size_t first = 0; first < PAGES; first += folio) {
        uint64_t frame = shared->before[first], *flags = shared->flags;
        ssize_t size = folio * sizeof flags[0];
        if (pread(file, flags, size, frame * sizeof flags[0]) != size) fail("cannot read kpageflags");
        if (frame % folio) fail("the folio at page %zu is not aligned", first);
        for (size_t i = 0; i < folio; i++) {
            uint64_t is = flags[i] & (head | tail), should = folio == 1 ? 0 : i == 0 ? head : tail;
            if (shared->before[first + i] != frame + i || is != should) fail("page %zu is not in a folio of order %d", first + i, order);
        }
    }
    close(file);
    size_t huge = in_huge_leaves(), should = order == 9 ? TOTAL / 1024 : 0;
    if (huge != should) fail("%zu KiB are in leaves of 2 MiB at order %d, not %zu", huge, order, should);
}

struct region {
    uint8_t *raw, *at;
};

static struct region map(int order) {
    struct region region;
    region.raw = mmap(0, TOTAL + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (region.raw == MAP_FAILED) fail("no memory");
    region.at = (uint8_t *)(((uintptr_t)region.raw + HUGE - 1) & ~(HUGE - 1));
    if (madvise(region.at, TOTAL, order ? MADV_HUGEPAGE : MADV_NOHUGEPAGE)) fail("madvise");
    return region;
}

static void schedule(int policy, int priority) {
    struct sched_param parameters = {.sched_priority = priority};
    if (sched_setscheduler(0, policy, &parameters)) fail("sched_setscheduler");
}

// fork() whose child waits for a byte and meanwhile cannot preempt the parent, so that none of its work is in the parent's time.
// 0 in the child.
static int held_fork(int operation, int go[2]) {
    if (pipe(go)) fail("pipe");
    schedule(SCHED_FIFO | SCHED_RESET_ON_FORK, 1);
    uint64_t since = stamp();
    int child = fork();
    if (child == 0) {
        char byte;
        if (read(go[0], &byte, 1) != 1) _exit(1);
        return 0;
    }
    note(operation, stamp() - since);
    schedule(SCHED_OTHER, 0);
    if (child < 0) fail("fork");
    return child;
}

static void let_go(int child, int go[2]) {
    int status;
    if (write(go[1], "x", 1) != 1 || waitpid(child, &status, 0) != child || status) fail("the child");
    close(go[0]);
    close(go[1]);
}

static void store_to_each(int operation, uint8_t *at, size_t folio) {
    for (size_t i = 0; i < TOTAL; i += folio) {
        uint64_t since = stamp();
        at[i] = 1;
        note(operation, stamp() - since);
    }
}

static void round_of(int order) {
    size_t folio = PAGE << order;
    int go[2];
    int child = held_fork(FORK_EMPTY, go);
    if (child == 0) _exit(0);
    let_go(child, go);

    struct region region = map(order);
    uint8_t *at = region.at;
    store_to_each(FAULT, at, folio);
    check(at, order);
    child = held_fork(FORK, go);
    if (child == 0) {
        store_to_each(COW, at, folio);
        shared->samples[COW].copied += moved(at);
        _exit(0);
    }
    let_go(child, go);
    store_to_each(REUSE, at + folio / 2, folio);
    shared->samples[REUSE].copied += moved(at);
    for (size_t i = 0; i < TOTAL; i += folio) {
        uint64_t since = stamp();
        if (madvise(at + i + (order ? PAGE : 0), PAGE, MADV_DONTNEED)) fail("madvise");
        note(ZAP_ONE, stamp() - since);
    }
    munmap(region.raw, TOTAL + HUGE);

    region = map(order);
    for (size_t i = 0; i < TOTAL; i += folio) region.at[i] = 1;
    check(region.at, order);
    uint64_t since = stamp();
    if (munmap(region.at, TOTAL)) fail("munmap");
    note(UNMAP, stamp() - since);
    munmap(region.raw, TOTAL + HUGE);
}

static void one_order(int order) {
    size_t folios = PAGES >> order;
    memset(shared->samples, 0, sizeof shared->samples);
    for (int round = 0; round < ROUNDS; round++) {
        round_of(order);
        for (int i = 0; round == 0 && i < OPERATIONS; i++) shared->samples[i].count = shared->samples[i].copied = 0;
    }
    for (int i = 0; i < OPERATIONS; i++) report(i, order, i == FORK || i == UNMAP ? folios : 1);
}

static void clear_a_page(void) {
    static uint64_t page[PAGE / sizeof(uint64_t)] __attribute__((aligned(PAGE)));
    memset(shared->samples, 0, sizeof shared->samples);
    for (int round = 0; round < 3; round++) {
        uint64_t since = stamp(), count = PAGE / sizeof(uint64_t), *to = page;
        __asm__ volatile("rep stosq" : "+c"(count), "+D"(to) : "a"(0ul) : "memory");
        note(0, stamp() - since);
    }
    printf("{\"zero_4k\":%lu}\n", shared->samples[0].ticks[2]);
}

// The arguments are the orders that are wanted.
int main(int count, char **arguments) {
    setvbuf(stdout, 0, _IONBF, 0);
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    if (mount("proc", "/proc", "proc", 0, 0) || mount("sysfs", "/sys", "sysfs", 0, 0)) fail("cannot mount /proc and /sys");
    shared = mmap(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (shared == MAP_FAILED) fail("no memory");
    struct utsname name;
    uname(&name);
    printf("{\"release\":\"%s\"}\n", name.release);
    clear_a_page();
    for (int i = 1; i < count; i++) {
        int order = atoi(arguments[i]);
        for (size_t j = 0; j < ORDERS; j++) {
            char path[128];
            snprintf(path, sizeof path, "/sys/kernel/mm/transparent_hugepage/hugepages-%lukB/enabled", (PAGE << orders[j]) / 1024);
            if (orders[j] > 0) set(path, orders[j] == order ? "madvise" : "never");
        }
        one_order(order);
    }
    printf("quire-linux: done\n");
    reboot(RB_POWER_OFF);
    return 1;
}
