/* Does things with memory that a trace must show, page by page. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };

static char *anon(size_t pages, int flags)
{
    char *at = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);
    if (at == MAP_FAILED)
        abort();
    return at;
}

int main(void)
{
    volatile char *private = anon(100, MAP_PRIVATE), *shared = anon(30, MAP_SHARED);
    for (int i = 0; i < 100; i++)
        private[i * PAGE] = 1;
    for (int i = 0; i < 20; i++)
        shared[i * PAGE] = 1;
    pid_t child = fork();
    if (child < 0)
        abort();
    if (child == 0) {
        for (int i = 40; i < 50; i++)
            private[i * PAGE + 8] = 2;
        for (int i = 20; i < 25; i++)
            (void)shared[i * PAGE];
        _exit(0);
    }
    if (waitpid(child, 0, 0) != child)
        abort();
    /* The kernel touches memory, too: it stores to page 200 and loads from page 201. */
    char *more = anon(300, MAP_PRIVATE);
    int ends[2];
    if (pipe(ends) || write(ends[1], more + 201 * PAGE, 8) != 8 || read(ends[0], more + 200 * PAGE, 8) != 8)
        abort();
    more = mremap(more, 300 * PAGE, 700 * PAGE, MREMAP_MAYMOVE);
    if (more == MAP_FAILED || madvise(more + 200 * PAGE, 2 * PAGE, MADV_DONTNEED))
        abort();
    memset(more + 200 * PAGE, 1, 2 * PAGE);
    if (mprotect(more, 700 * PAGE, PROT_NONE) || munmap(more, 700 * PAGE))
        abort();
    return 3;
}
