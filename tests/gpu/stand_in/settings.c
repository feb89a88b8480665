// The environment: GPU_STAND_IN_GPUS="name|8.6|24;name|9.0|80" (the last are gigabytes), and CUDA_VISIBLE_DEVICES.
// GPU_STAND_IN_ERROR, _SLOW_US, _ZEROS and _LOG are explained in tests/helpers/gpu_stand_in.py.
#include "stand_in.h"

Gpu gpus[16];
int gpu_count;

static int read_gpus(Gpu* all) {
  int count = 0, used;
  double gigabytes;
  const char* text = getenv("GPU_STAND_IN_GPUS");
  for (; text && count < 16; count++) {
    Gpu* gpu = &all[count];
    if (sscanf(text, "%63[^|]|%d.%d|%lf%n", gpu->name, &gpu->major, &gpu->minor, &gigabytes, &used) != 4) break;
    gpu->memory = (size_t)(gigabytes * (1 << 30));
    text += used + (text[used] == ';');
  }
  return count;
}

void read_settings(void) {
  static int done;
  if (done++) return;
  static Gpu all[16];
  int count = read_gpus(all);
  const char* visible = getenv("CUDA_VISIBLE_DEVICES");
  if (!visible) {
    memcpy(gpus, all, sizeof all);
    gpu_count = count;
    return;
  }
  // As CUDA does: in this order, up to the first that does not exist.
  for (char* end; gpu_count < 16; visible = end + (*end == ',')) {
    long index = strtol(visible, &end, 10);
    if (end == visible || index < 0 || index >= count) return;
    gpus[gpu_count++] = all[index];
  }
}

long setting(const char* name) {
  const char* text = getenv(name);
  return text ? atol(text) : 0;
}

int count_error(void) {
  read_settings();
  int error = (int)setting("GPU_STAND_IN_ERROR");
  return error ? error : gpu_count ? NO_ERROR : NO_DEVICE;
}
