// The CUDA runtime but for its memory: devices, streams, events, launches. All is done at once; kernels are logged.
#include "stand_in.h"

__thread int current_gpu, last_error;

// ---- devices
typedef struct {  // of CUDA 11.7
  char name[256], id[24];
  unsigned mask;
  size_t memory, shared_per_block;
  int registers_per_block, warp;
  size_t pitch;
  int threads_per_block, block[3], grid[3], clock;
  size_t constant;
  int major, minor;
  size_t texture_alignment[2];
  int overlap, processors, not_set[44];
  size_t surface_alignment;
  int not_set2[12], threads_per_processor, not_set3[3];
  size_t shared_per_processor;
  int registers_per_processor, not_set4[11];
  size_t shared_per_block_optin;
  int not_set5[4];
  size_t reserved;
} Properties;

enum { THREADS = 1024, GRID_X = 2147483647, GRID_YZ = 65535, WARP = 32, PROCESSORS = 82, REGISTERS = 65536 };
enum { SHARED = 49152, SHARED_OPTIN = 101376, SHARED_PER_PROCESSOR = 102400 };
enum { THREADS_PER_PROCESSOR = 1536, BLOCKS = 16 };

int stand_in_cudaGetDeviceCount(int* count) {
  int error = count_error();
  *count = error ? 0 : gpu_count;
  return error;
}
int stand_in_cudaGetDevice(int* gpu) { *gpu = current_gpu; return NO_ERROR; }
int stand_in_cudaSetDevice(int gpu) {
  if (gpu < 0 || gpu >= gpu_count) return INVALID_DEVICE;
  current_gpu = gpu;
  return NO_ERROR;
}
int stand_in_cudaSetDeviceFlags(unsigned flags) { return NO_ERROR; }
int stand_in_cudaGetDeviceFlags(unsigned* flags) { *flags = 0; return NO_ERROR; }
int stand_in_cudaDeviceReset(void) { return NO_ERROR; }
int stand_in_cudaDriverGetVersion(int* version) { *version = 11080; return NO_ERROR; }
int stand_in_cudaRuntimeGetVersion(int* version) { *version = 11070; return NO_ERROR; }
int stand_in_cudaDeviceCanAccessPeer(int* can, int gpu, int peer) { *can = 0; return NO_ERROR; }
int stand_in_cudaDeviceGetPCIBusId(char* id, int size, int gpu) {
  snprintf(id, size, "0000:%02X:00.0", gpu + 1);
  return NO_ERROR;
}
int stand_in_cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return NO_ERROR;
}

int stand_in_cudaGetDeviceProperties(Properties* p, int gpu) {
  if (gpu < 0 || gpu >= gpu_count) return INVALID_DEVICE;
  *p = (Properties){
      .memory = gpus[gpu].memory, .major = gpus[gpu].major, .minor = gpus[gpu].minor, .warp = WARP,
      .shared_per_block = SHARED, .shared_per_block_optin = SHARED_OPTIN,
      .shared_per_processor = SHARED_PER_PROCESSOR,
      .registers_per_block = REGISTERS, .registers_per_processor = REGISTERS, .threads_per_block = THREADS,
      .threads_per_processor = THREADS_PER_PROCESSOR, .block = {THREADS, THREADS, 64},
      .grid = {GRID_X, GRID_YZ, GRID_YZ}, .processors = PROCESSORS};
  strcpy(p->name, gpus[gpu].name);
  return NO_ERROR;
}

int stand_in_cudaDeviceGetAttribute(int* value, int attribute, int gpu) {
  switch (attribute) {  // cudaDeviceAttr
    case 1: case 2: case 3: *value = THREADS; break;
    case 4: *value = 64; break;
    case 5: *value = GRID_X; break;
    case 6: case 7: *value = GRID_YZ; break;
    case 8: *value = SHARED; break;
    case 10: *value = WARP; break;
    case 12: case 82: *value = REGISTERS; break;
    case 16: *value = PROCESSORS; break;
    case 39: *value = THREADS_PER_PROCESSOR; break;
    case 75: *value = gpus[gpu].major; break;
    case 76: *value = gpus[gpu].minor; break;
    case 81: *value = SHARED_PER_PROCESSOR; break;
    case 97: *value = SHARED_OPTIN; break;
    case 106: *value = BLOCKS; break;
    default: event("error", "unknown-attribute", attribute, ""); return NOT_SUPPORTED;
  }
  return NO_ERROR;
}

// ---- streams and events
static int create_stream(Stream* stream) {
  static int count;
  *stream = malloc(sizeof **stream);
  (*stream)->number = __sync_add_and_fetch(&count, 1);
  return NO_ERROR;
}
int stand_in_cudaStreamCreate(Stream* stream) { return create_stream(stream); }
int stand_in_cudaStreamCreateWithFlags(Stream* stream, unsigned flags) { return create_stream(stream); }
int stand_in_cudaStreamCreateWithPriority(Stream* stream, unsigned flags, int priority) {
  return create_stream(stream);
}
int stand_in_cudaStreamDestroy(Stream stream) { free(stream); return NO_ERROR; }
int stand_in_cudaStreamQuery(Stream stream) { return NO_ERROR; }
int stand_in_cudaStreamWaitEvent(Stream stream, void* of, unsigned flags) { return NO_ERROR; }
int stand_in_cudaStreamIsCapturing(Stream stream, int* status) { *status = 0; return NO_ERROR; }
int stand_in_cudaEventCreate(void** made) { *made = malloc(1); return NO_ERROR; }
int stand_in_cudaEventCreateWithFlags(void** made, unsigned flags) { *made = malloc(1); return NO_ERROR; }
int stand_in_cudaEventDestroy(void* of) { free(of); return NO_ERROR; }
int stand_in_cudaEventRecord(void* of, Stream stream) { return NO_ERROR; }
int stand_in_cudaEventQuery(void* of) { return NO_ERROR; }
int stand_in_cudaEventElapsedTime(float* milliseconds, void* from, void* to) { *milliseconds = 1; return NO_ERROR; }
int stand_in_cudaLaunchHostFunc(Stream stream, void (*call)(void*), void* with) { call(with); return NO_ERROR; }
int stand_in_cudaDeviceSynchronize(void) { event("wait", "device", 0, ""); return NO_ERROR; }
int stand_in_cudaEventSynchronize(void* of) { event("wait", "event", 0, ""); return NO_ERROR; }
int stand_in_cudaStreamSynchronize(Stream stream) {
  event("wait", "stream", 0, "stream %d", stream_number(stream));
  return NO_ERROR;
}

// ---- kernels
int stand_in_cudaPeekAtLastError(void) { return last_error; }
int stand_in_cudaGetLastError(void) {
  int error = last_error;
  last_error = NO_ERROR;
  return error;
}
int stand_in_cudaFuncSetAttribute(const void* kernel, int attribute, int value) { return NO_ERROR; }
int stand_in_cudaFuncSetCacheConfig(const void* kernel, int config) { return NO_ERROR; }
int stand_in_cudaGetDriverEntryPoint(const char* name, void** entry, unsigned long long flags) {
  *entry = NULL;
  return NOT_SUPPORTED;
}

typedef struct {
  size_t shared, constant, local;
  int threads, registers, ptx, binary, cache, dynamic_shared, carveout;
} KernelAttributes;
int stand_in_cudaFuncGetAttributes(KernelAttributes* about, const void* kernel) {
  *about = (KernelAttributes){.threads = THREADS, .registers = 32, .ptx = 86, .binary = 86, .dynamic_shared = SHARED};
  return NO_ERROR;
}

int stand_in_cudaOccupancyMaxActiveBlocksPerMultiprocessor(
    int* blocks, const void* kernel, int threads, size_t shared) {
  int fit = threads ? THREADS_PER_PROCESSOR / threads : 1;
  *blocks = fit < BLOCKS ? fit : BLOCKS;
  return NO_ERROR;
}
int stand_in_cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int* blocks, const void* kernel, int threads, size_t shared, unsigned flags) {
  return stand_in_cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, shared);
}

static __thread struct { Dim3 grid, block; size_t shared; Stream stream; } pushed;
unsigned stand_in___cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, Stream stream) {
  pushed.grid = grid, pushed.block = block, pushed.shared = shared, pushed.stream = stream;
  return 0;
}
int stand_in___cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared, Stream* stream) {
  *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared, *stream = pushed.stream;
  return NO_ERROR;
}

const char* place_of(const void* code, size_t* offset);  // patch.c

int stand_in_cudaLaunchKernel(
    const void* kernel, Dim3 grid, Dim3 block, void** arguments, size_t shared, Stream stream) {
  size_t offset;
  const char* library = place_of(kernel, &offset);
  event("kernel", library, offset, "grid %u,%u,%u block %u,%u,%u shared %zu stream %d", grid.x, grid.y, grid.z,
        block.x, block.y, block.z, shared, stream_number(stream));
  size_t threads = (size_t)block.x * block.y * block.z, blocks = (size_t)grid.x * grid.y * grid.z;
  if (!threads || threads > THREADS || !blocks || grid.x > GRID_X || grid.y > GRID_YZ || grid.z > GRID_YZ ||
      shared > SHARED_OPTIN) {
    event("error", "size-of-launch", 0, "");
    return last_error = BAD_LAUNCH;
  }
  return NO_ERROR;
}
int stand_in_cudaLaunchCooperativeKernel(
    const void* kernel, Dim3 grid, Dim3 block, void** arguments, size_t shared, Stream stream) {
  return stand_in_cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}
