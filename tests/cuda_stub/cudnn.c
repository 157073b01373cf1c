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

/* ---- LSTM: its weights, of one number each, are moved into a space of their own ---- */

int cudnnGetTensorNdDescriptor(void *tensor, int most, int *type, int *count, int *sizes, int *strides) {
    *count = most;
    for (int i = 0; i < most; i++)
        sizes[i] = strides[i] = 1;
    return 0;
}

int cudnnDropoutGetStatesSize(void *handle, size_t *bytes) { return size(bytes); }
int cudnnGetRNNWeightSpaceSize(void *handle, void *rnn, size_t *bytes) { return size(bytes); }

int cudnnGetRNNTempSpaceSizes(void *handle, void *rnn, int mode, void *x, size_t *work, size_t *reserve) {
    return size(work), size(reserve);
}

int cudnnGetRNNWeightParams(void *handle, void *rnn, int layer, size_t bytes, void *space, int gate, void *matrix,
                            void **matrix_at, void *bias, void **bias_at) {
    *matrix_at = *bias_at = space;
    return 0;
}

int cudnnRNNForward(void) {
    stub_log("cudnnRNNForward");
    return stub_fails("launch");
}
