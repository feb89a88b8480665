// What the parts of the stand-in share: settings from the environment, the log, and the types of CUDA.
#pragma once
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {  // cudaError_t and CUresult, which agree in these
  NO_ERROR = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, BAD_LAUNCH = 9, BAD_DIRECTION = 21, NO_DEVICE = 100,
  INVALID_DEVICE = 101, NOT_SUPPORTED = 801
};
enum { TO_DEVICE = 1, TO_HOST = 2, ON_DEVICE = 3, BY_ADDRESS = 4 };  // cudaMemcpyKind; 0 is from host to host

typedef struct { char name[64]; int major, minor; size_t memory; } Gpu;
typedef struct { unsigned x, y, z; } Dim3;
typedef struct { int number; } *Stream;

// ---- settings.c
extern Gpu gpus[16];
extern int gpu_count;
void read_settings(void);  // a second time is harmless
int count_error(void);     // what asking for the number of GPUs gives
long setting(const char* name);

// ---- log.c: a line an event, "THREAD KIND NAME SIZE more"; in a file for each rank
void event(const char* kind, const char* name, size_t size, const char* more, ...);
int stream_number(Stream stream);

// ---- memory.c
void* contents(const void* pointer);  // where what lies in device memory is kept; host memory as it is
int is_device(const void* pointer);
