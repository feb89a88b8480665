// NCCL between processes of one host, through a file in shared memory: each rank writes its slot, then all read.
#include <fcntl.h>
#include <sys/mman.h>

#include "stand_in.h"

#define SLOT ((size_t)1 << 30)  // of addresses, for each rank
#define HEAD ((size_t)4096)

typedef struct { char text[128]; } Id;
typedef struct { int rank, size; char* shared; unsigned long barriers; } *Group;

// Waits for ever for a rank that has died, as NCCL does.
static void barrier(Group group) {
  unsigned long* arrived = (unsigned long*)group->shared;
  unsigned long all = ++group->barriers * group->size;
  __atomic_add_fetch(arrived, 1, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(arrived, __ATOMIC_SEQ_CST) < all) usleep(100);
}

static char* slot(Group group, int rank) { return group->shared + HEAD + rank * SLOT; }

static size_t bytes(size_t count, int type) {  // ncclDataType_t
  static const size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
  return count * sizes[type];
}

static void sum_slots(Group group, char* out, size_t start, size_t count, int type) {
  if (type != 2 && type != 4 && type != 7 && type != 8) event("error", "nccl-sum-of-type", type, "");
  for (int rank = 0; rank < group->size; rank++) {
    char* in = slot(group, rank) + bytes(start, type);
    if (rank == 0) memcpy(out, in, bytes(count, type));
    else for (size_t i = 0; i < count; i++) {
      if (type == 2) ((int32_t*)out)[i] += ((int32_t*)in)[i];
      if (type == 4) ((int64_t*)out)[i] += ((int64_t*)in)[i];
      if (type == 7) ((float*)out)[i] += ((float*)in)[i];
      if (type == 8) ((double*)out)[i] += ((double*)in)[i];
    }
  }
}

static void share(const char* name, Group group, const void* from, size_t count, int type, Stream stream) {
  event("nccl", name, bytes(count, type), "type %d stream %d", type, stream_number(stream));
  if (bytes(count, type) > SLOT) event("error", "nccl-slot-too-small", bytes(count, type), "");
  memcpy(slot(group, group->rank), contents(from), bytes(count, type));
  barrier(group);
}

int ncclGetVersion(int* version) { *version = 21210; return 0; }
const char* ncclGetErrorString(int error) { return "GPU stand-in"; }
int ncclGetUniqueId(Id* id) {
  snprintf(id->text, sizeof id->text, "/dev/shm/gpu-stand-in-XXXXXX");
  int file = mkstemp(id->text);
  return file < 0 ? 2 : close(file);
}
int ncclCommInitRank(Group* made, int size, Id id, int rank) {
  Group group = *made = calloc(1, sizeof **made);
  group->rank = rank, group->size = size;
  int file = open(id.text, O_RDWR);
  if (file < 0 || ftruncate(file, HEAD + size * SLOT)) return 2;
  group->shared = mmap(NULL, HEAD + size * SLOT, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
  close(file);
  barrier(group);
  if (rank == 0) unlink(id.text);  // all have it open
  event("nccl", "init", 0, "rank %d of %d", rank, size);
  return 0;
}
int ncclCommDestroy(Group group) { return 0; }
int ncclCommAbort(Group group) { return 0; }
int ncclCommGetAsyncError(Group group, int* error) { *error = 0; return 0; }
int ncclCommUserRank(Group group, int* rank) { *rank = group->rank; return 0; }
int ncclCommCount(Group group, int* count) { *count = group->size; return 0; }
int ncclGroupStart(void) { return 0; }
int ncclGroupEnd(void) { return 0; }

int ncclAllReduce(const void* from, void* to, size_t count, int type, int op, Group group, Stream stream) {
  share("all-reduce", group, from, count, type, stream);
  sum_slots(group, contents(to), 0, count, type);
  barrier(group);
  return 0;
}
int ncclReduce(const void* from, void* to, size_t count, int type, int op, int root, Group group, Stream stream) {
  share("reduce", group, from, count, type, stream);
  if (group->rank == root) sum_slots(group, contents(to), 0, count, type);
  barrier(group);
  return 0;
}
int ncclReduceScatter(const void* from, void* to, size_t count, int type, int op, Group group, Stream stream) {
  share("reduce-scatter", group, from, count * group->size, type, stream);
  sum_slots(group, contents(to), group->rank * count, count, type);
  barrier(group);
  return 0;
}
int ncclAllGather(const void* from, void* to, size_t count, int type, Group group, Stream stream) {
  share("all-gather", group, from, count, type, stream);
  size_t size = bytes(count, type);
  for (int rank = 0; rank < group->size; rank++) memcpy((char*)contents(to) + rank * size, slot(group, rank), size);
  barrier(group);
  return 0;
}
int ncclBroadcast(const void* from, void* to, size_t count, int type, int root, Group group, Stream stream) {
  share("broadcast", group, group->rank == root ? from : to, count, type, stream);
  memcpy(contents(to), slot(group, root), bytes(count, type));
  barrier(group);
  return 0;
}
