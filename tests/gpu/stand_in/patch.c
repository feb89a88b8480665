// Once OneFlow is loaded, has each function of the CUDA runtime inside it jump to the stand-in's.
// symbols.inc is made from the libraries: LIBRARY("name"), FUNCTION(name) for each, and PLACE(library, name, offset).
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>

#include "stand_in.h"

static int missing(const char* name) {
  event("error", name, 0, "is not in the stand-in");
  return NOT_SUPPORTED;
}
#define FUNCTION(name) __attribute__((weak)) int stand_in_##name(void) { return missing(#name); }
#define LIBRARY(name)
#define PLACE(library, name, offset)
#include "symbols.inc"
#undef FUNCTION
#undef LIBRARY
#undef PLACE

#define FUNCTION(name)
#define LIBRARY(name) name,
#define PLACE(library, name, offset)
static const char* libraries[] = {
#include "symbols.inc"
};
#undef LIBRARY
#undef PLACE

#define LIBRARY(name)
#define PLACE(library, name, offset) {library, (void*)stand_in_##name, offset},
static const struct { int library; void* stand_in; size_t offset; } places[] = {
#include "symbols.inc"
};

enum { LIBRARIES = sizeof libraries / sizeof *libraries, PLACES = sizeof places / sizeof *places };
static char* bases[LIBRARIES];

// The library that holds the code, and where in it. The first one lies lower or higher than the other.
const char* place_of(const void* code, size_t* offset) {
  int best = 0;
  for (int i = 1; i < LIBRARIES; i++)
    if ((char*)code >= bases[i] && (bases[i] > bases[best] || (char*)code < bases[best])) best = i;
  *offset = (char*)code - bases[best];
  return libraries[best];
}

static void jump(char* from, void* to) {
  unsigned char code[14] = {0xff, 0x25};  // jmp *(the 8 bytes behind this instruction)
  memcpy(code + 6, &to, 8);
  char* page = (char*)((uintptr_t)from & ~(uintptr_t)4095);
  if (mprotect(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC)) abort();
  memcpy(from, code, sizeof code);
}

void start_memory(void);

static void patch_all(void) {
  read_settings();
  start_memory();
  for (int i = 0; i < LIBRARIES; i++) {
    struct link_map* map = dlopen(libraries[i], RTLD_LAZY | RTLD_NOLOAD);
    bases[i] = (char*)map->l_addr;
  }
  for (int i = 0; i < PLACES; i++) jump(bases[places[i].library] + places[i].offset, places[i].stand_in);
}

// Python asks for this when it has loaded OneFlow, and before OneFlow has asked for a GPU.
void* dlsym(void* library, const char* name) {
  static void* (*original)(void*, const char*);
  if (!original) original = dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5");
  if (!strcmp(name, "PyInit__oneflow_internal")) patch_all();
  return original(library, name);
}
