/* Stand-in for libcudnn, which ONNX Runtime looks up by name when it needs it. */
#include "stub.h"

#include <stdlib.h>

static int made(void **object) {
    *object = malloc(1);
    return 0;
}

static int size(size_t *bytes) {
    *bytes = 1024;
    return 0;
}

size_t cudnnGetVersion(void) { return 91000; }
const char *cudnnGetErrorString(int status) { return status ? "an error that was asked for" : "no error"; }

int cudnnCreate(void **handle) {
    stub_log("cudnnCreate");
    return made(handle);
}

int cudnnDestroy(void *handle) {
    stub_log("cudnnDestroy");
    return free(handle), 0;
}

int cudnnCreateTensorDescriptor(void **object) { return made(object); }
int cudnnDestroyTensorDescriptor(void *object) { return free(object), 0; }
int cudnnCreateReduceTensorDescriptor(void **object) { return made(object); }
int cudnnDestroyReduceTensorDescriptor(void *object) { return free(object), 0; }

int cudnnGetReductionIndicesSize(void *handle, void *reduction, void *a, void *c, size_t *bytes) {
    return size(bytes);
}

int cudnnGetReductionWorkspaceSize(void *handle, void *reduction, void *a, void *c, size_t *bytes) {
    return size(bytes);
}

int cudnnReduceTensor(void) {
    stub_log("cudnnReduceTensor");
    return stub_fails("launch");
}
