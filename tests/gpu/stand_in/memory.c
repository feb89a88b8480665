// Device memory, page-locked host memory, and copies. What the host may not touch has no access rights: it crashes.
#include <execinfo.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#include "stand_in.h"

#define SPACE ((size_t)256 << 30)  // of addresses; memory is taken when it is written
#define PAGE ((size_t)4096)

typedef struct { char* start; size_t size; int in_use, gpu; } Block;
typedef struct { char* base; size_t used; Block* blocks; size_t count; } Arena;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Arena device, pinned;
static char* kept;  // the contents of device memory, at the same distances
static size_t in_use[16];
extern __thread int current_gpu, last_error;

static void* reserve(int rights) {
  void* base = mmap(NULL, SPACE, rights, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    perror("GPU stand-in: mmap");
    exit(1);
  }
  return base;
}

static void on_crash(int number, siginfo_t* about, void* context) {
  void* frames[32];
  int touched = is_device(about->si_addr);
  event("error", touched ? "host-touched-device-memory" : "crash", 0, "signal %d at %p", number, about->si_addr);
  backtrace_symbols_fd(frames, backtrace(frames, 32), 2);
  signal(number, SIG_DFL);
  raise(number);
}

void start_memory(void) {
  device.base = reserve(PROT_NONE);
  kept = reserve(PROT_READ | PROT_WRITE);
  pinned.base = reserve(PROT_READ | PROT_WRITE);
  sigaction(SIGSEGV, &(struct sigaction){.sa_sigaction = on_crash, .sa_flags = SA_SIGINFO}, NULL);
}

static int is_in(const Arena* arena, const void* p) {
  return arena->base && (char*)p >= arena->base && (char*)p < arena->base + SPACE;
}
int is_device(const void* p) { return is_in(&device, p); }
void* contents(const void* p) { return is_device(p) ? kept + ((char*)p - device.base) : (void*)p; }

static Block* block_of(const Arena* arena, const void* p) {
  for (Block* block = arena->blocks; block < arena->blocks + arena->count; block++)
    if (block->in_use && (char*)p >= block->start && (char*)p < block->start + block->size) return block;
  return NULL;
}

static Block* take(Arena* arena, size_t size) {
  size_t whole = (size + PAGE - 1) & ~(PAGE - 1);
  Block* block = arena->blocks;
  while (block < arena->blocks + arena->count && (block->in_use || block->size != whole)) block++;
  if (block == arena->blocks + arena->count) {
    arena->blocks = realloc(arena->blocks, (arena->count + 1) * sizeof(Block));
    block = &arena->blocks[arena->count++];
    *block = (Block){.start = arena->base + arena->used, .size = whole};
    arena->used += whole + PAGE;  // a page between blocks belongs to none
  }
  block->in_use = 1;
  block->gpu = current_gpu;
  return block;
}

static int allocate(Arena* arena, void** p, size_t size) {
  int error = NO_ERROR;
  *p = NULL;
  pthread_mutex_lock(&lock);
  if (arena == &device && in_use[current_gpu] + size > gpus[current_gpu].memory) {
    error = last_error = OUT_OF_MEMORY;
  } else if (size) {
    Block* block = take(arena, size);
    *p = block->start;
    if (arena == &device) in_use[current_gpu] += block->size;
  }
  pthread_mutex_unlock(&lock);
  event(error ? "refused" : "allocate", arena == &device ? "device" : "pinned", size, "gpu %d", current_gpu);
  return error;
}

static int release(Arena* arena, void* p) {
  if (!p) return NO_ERROR;
  pthread_mutex_lock(&lock);
  Block* block = block_of(arena, p);
  int whole = block && block->start == (char*)p;
  if (whole) {
    block->in_use = 0;
    if (arena == &device) in_use[block->gpu] -= block->size;
    madvise(contents(p), block->size, MADV_DONTNEED);
  }
  pthread_mutex_unlock(&lock);
  event(whole ? "free" : "error", arena == &device ? "device" : "pinned", whole ? block->size : 0, "");
  return whole ? NO_ERROR : INVALID_VALUE;
}

int stand_in_cudaMalloc(void** p, size_t size) { return allocate(&device, p, size); }
int stand_in_cudaFree(void* p) { return release(&device, p); }
int stand_in_cudaMallocHost(void** p, size_t size) { return allocate(&pinned, p, size); }
int stand_in_cudaHostAlloc(void** p, size_t size, unsigned flags) { return allocate(&pinned, p, size); }
int stand_in_cudaFreeHost(void* p) { return release(&pinned, p); }

int stand_in_cudaMemGetInfo(size_t* free, size_t* total) {
  *total = gpus[current_gpu].memory;
  *free = *total - in_use[current_gpu];
  return NO_ERROR;
}

typedef struct { int type, gpu; void *on_device, *on_host; } PointerAttributes;
int stand_in_cudaPointerGetAttributes(PointerAttributes* about, const void* p) {
  enum { UNREGISTERED, HOST, DEVICE };
  *about = (PointerAttributes){.type = is_device(p) ? DEVICE : is_in(&pinned, p) ? HOST : UNREGISTERED};
  return NO_ERROR;
}

static int is_inside(const void* p, size_t size) {
  pthread_mutex_lock(&lock);
  Block* block = block_of(&device, p);
  int inside = !is_device(p) || (block && (char*)p + size <= block->start + block->size);
  pthread_mutex_unlock(&lock);
  return inside;
}

static int copy(void* to, const void* from, size_t size, int kind, Stream stream, const char* how) {
  static const char* names[] = {"on-host", "to-device", "to-host", "on-device"};
  int way = (is_device(from) ? TO_HOST : 0) + (is_device(to) ? TO_DEVICE : 0);
  const char* host = way == ON_DEVICE ? "" : is_in(&pinned, way == TO_DEVICE ? from : to) ? "pinned" : "pageable";
  event("copy", names[way], size, "%s %s stream %d", how, host, stream_number(stream));
  if (kind != BY_ADDRESS && kind != way) {
    event("error", "direction-of-copy", size, "said %d, is %d", kind, way);
    return BAD_DIRECTION;
  }
  if (!is_inside(to, size) || !is_inside(from, size)) {
    event("error", "copy-beyond-block", size, "");
    return INVALID_VALUE;
  }
  memmove(contents(to), contents(from), size);
  if (way == TO_HOST && setting("GPU_STAND_IN_ZEROS")) memset(to, 0, size);
  return NO_ERROR;
}

int stand_in_cudaMemcpy(void* to, const void* from, size_t size, int kind) {
  return copy(to, from, size, kind, NULL, "waits");
}
int stand_in_cudaMemcpyAsync(void* to, const void* from, size_t size, int kind, Stream stream) {
  return copy(to, from, size, kind, stream, "async");
}

int stand_in_cudaMemcpy2DAsync(
    char* to, size_t to_row, const char* from, size_t from_row, size_t size, size_t rows, int kind, Stream stream) {
  int error = NO_ERROR;
  for (size_t row = 0; row < rows && !error; row++)
    error = copy(to + row * to_row, from + row * from_row, size, kind, stream, "async");
  return error;
}

static int fill(void* p, int value, size_t size, Stream stream, const char* how) {
  event("fill", how, size, "stream %d", stream_number(stream));
  if (!is_device(p) || !is_inside(p, size)) {
    event("error", "fill-of-what-is-no-block", size, "");
    return INVALID_VALUE;
  }
  // Pages that nobody has written are zero, and cost nothing.
  char *start = contents(p), *first = (char*)(((uintptr_t)start + PAGE - 1) & ~(PAGE - 1));
  size_t whole = start + size > first ? (start + size - first) & ~(PAGE - 1) : 0;
  if (value == 0 && whole) {
    memset(start, 0, first - start);
    madvise(first, whole, MADV_DONTNEED);
    memset(first + whole, 0, start + size - first - whole);
  } else {
    memset(start, value, size);
  }
  return NO_ERROR;
}

int stand_in_cudaMemset(void* p, int value, size_t size) { return fill(p, value, size, NULL, "waits"); }
int stand_in_cudaMemsetAsync(void* p, int value, size_t size, Stream stream) {
  return fill(p, value, size, stream, "async");
}
