/* Stand-in for the driver, libcuda: what `yt8m doctor` asks it. */
#include "stub.h"

#include <stdio.h>
#include <stdlib.h>

static int number(const char *variable, int otherwise) {
    const char *text = getenv(variable);
    return text ? atoi(text) : otherwise;
}

int cuInit(unsigned flags) {
    return number("CUDA_STUB_DEVICES", 1) ? 0 : 100; /* CUDA_ERROR_NO_DEVICE */
}

int cuDriverGetVersion(int *version) {
    *version = number("CUDA_STUB_DRIVER", 13000);
    return 0;
}

int cuDeviceGetCount(int *count) {
    *count = number("CUDA_STUB_DEVICES", 1);
    return 0;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return 0;
}

int cuDeviceGetName(char *name, int size, int device) {
    snprintf(name, (size_t)size, "CUDA stub");
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int capability = number("CUDA_STUB_CAPABILITY", 90);
    *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : 0;
    return 0;
}
