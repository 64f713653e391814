/* What a host of engines with CleaveAttention plugins provides: the attention of one layer.
 *
 * The plugin has no kernels of its own. It calls the host that was bound, in that thread, when TensorRT made it:
 * bind around deserialising an engine and creating its contexts. */
#ifndef CLEAVE_PLUGIN_H
#define CLEAVE_PLUGIN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CLEAVE_ABI 1

typedef enum CleaveType {
    CLEAVE_FLOAT32 = 0,
    CLEAVE_FLOAT16 = 1,
    CLEAVE_BFLOAT16 = 2
} CleaveType;

/* One layer of one step. Rows are tokens, row-major and without gaps; addresses are of device memory. */
typedef struct CleaveCall {
    int32_t layer;
    int32_t heads;
    int32_t kv_heads;
    int32_t head_dim;
    int64_t tokens;
    CleaveType type;
    void const* q; /* [tokens, heads * head_dim], before rotary encoding */
    void const* k; /* [tokens, kv_heads * head_dim], before rotary encoding */
    void const* v; /* [tokens, kv_heads * head_dim] */
    void* out;     /* [tokens, heads * head_dim] */
    void* stream;  /* cudaStream_t: enqueue there, and do not wait, allocate or copy from pageable memory */
} CleaveCall;

typedef struct CleaveHost {
    int32_t abi; /* CLEAVE_ABI */
    void* context;
    /* Enqueues the attention of one layer; 0, or any other number to fail the run of the engine. */
    int32_t (*run)(void* context, CleaveCall const* call);
} CleaveHost;

/* Plugins that TensorRT makes in this thread from now on call `host`, and so do their clones; NULL: nobody.
 * The host must live as long as they do. Returns 0, or 1 for a host of another ABI. */
int32_t cleave_bind(CleaveHost const* host);

#ifdef __cplusplus
}
#endif

#endif
