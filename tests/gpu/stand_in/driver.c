// libcuda.so.1, as far as it is asked for a GPU's name, compute capability and memory.
#include "stand_in.h"

enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 };

int cuInit(unsigned flags) { return count_error(); }
int cuDriverGetVersion(int* version) { *version = 11080; return NO_ERROR; }
int cuDeviceGetCount(int* count) { *count = gpu_count; return count_error(); }
int cuDeviceGet(int* device, int index) { *device = index; return index < gpu_count ? NO_ERROR : INVALID_DEVICE; }

int cuDeviceGetName(char* name, int size, int device) {
  if (device < 0 || device >= gpu_count) return INVALID_DEVICE;
  snprintf(name, size, "%s", gpus[device].name);
  return NO_ERROR;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  if (device < 0 || device >= gpu_count) return INVALID_DEVICE;
  if (attribute != CAPABILITY_MAJOR && attribute != CAPABILITY_MINOR) return INVALID_VALUE;
  *value = attribute == CAPABILITY_MAJOR ? gpus[device].major : gpus[device].minor;
  return NO_ERROR;
}

int cuDeviceTotalMem_v2(size_t* bytes, int device) {
  if (device < 0 || device >= gpu_count) return INVALID_DEVICE;
  *bytes = gpus[device].memory;
  return NO_ERROR;
}
