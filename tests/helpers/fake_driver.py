"""A stand-in for NVIDIA's driver library, with GPUs and faults as the environment says. It is compiled by gcc."""

import shutil
import subprocess
from pathlib import Path

import pytest

# As libcuda does, it reads CUDA_VISIBLE_DEVICES when it is initialised, and knows GPUs by their numbers (only).
SOURCE = r"""
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int visible[64], count = -1;
static char gpus[64][64];
static int capabilities[64];

int cuInit(unsigned flags) {
  const char *chosen = getenv("CUDA_VISIBLE_DEVICES"), *text = getenv("FAKE_CU_INIT");
  int all = 0, status = text ? atoi(text) : 0;
  if (getenv("FAKE_CU_CRASH")) abort();
  if (getenv("FAKE_CU_HANG")) sleep(60);
  if (status && (!getenv("FAKE_CU_HIDES") || !chosen || strcmp(chosen, "-1"))) return status;
  char *list = strdup(getenv("FAKE_CU_GPUS") ? getenv("FAKE_CU_GPUS") : "");
  for (char *gpu = strtok(list, ","); gpu; gpu = strtok(NULL, ","), all++) {
    char *colon = strchr(gpu, ':');
    capabilities[all] = (colon[1] - '0') * 10 + colon[3] - '0';
    *colon = 0;
    strcpy(gpus[all], gpu);
  }
  count = 0;
  if (!chosen) while (count < all) visible[count] = count, count++;
  else for (char *one = strtok(strdup(chosen), ","); one; one = strtok(NULL, ",")) {
    int number = atoi(one);
    if (number < 0 || number >= all) break;
    visible[count++] = number;
  }
  return count ? 0 : 100;
}
int cuDeviceGetCount(int *n) { if (count < 0) return 3; *n = count; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, gpus[visible[device]], size); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  int capability = capabilities[visible[device]];
  *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : -1;
  return 0;
}
"""


def make_driver(folder: Path) -> Path:
    """Compile it; returns the folder for LD_LIBRARY_PATH. Skips the test where there is no gcc."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no gcc here, which compiles a stand-in for the GPU driver")
    source = folder / "driver.c"
    source.write_text(SOURCE)
    subprocess.run([gcc, "-shared", "-fPIC", "-w", source, "-o", folder / "libcuda.so.1"], check=True, timeout=60)
    return folder
