/* Threads change one address space at the same time; then one that is not the first runs a program. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, THREADS = 4, ROUNDS = 100, PAGES = 7 };

static void *churn(void *argument)
{
    for (int round = 0; round < ROUNDS; round++) {
        volatile char *at = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED)
            abort();
        for (int i = 0; i < PAGES; i++)
            at[i * PAGE] = 1;
        if (munmap((void *)at, PAGES * PAGE))
            abort();
    }
    return argument;
}

static void *run(void *argument)
{
    execl("/bin/true", "true", (char *)0);
    return argument;
}

int main(void)
{
    pthread_t threads[THREADS], last;
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], 0, churn, 0))
            abort();
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], 0);
    if (pthread_create(&last, 0, run, 0))
        abort();
    pthread_join(last, 0);
    return 1;
}
