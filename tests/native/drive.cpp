// Calls a plugin through TensorRT's C++ interfaces, as TensorRT does; `test_drive.py` compiles and loads it.
#include <NvInferRuntime.h>

#include <array>
#include <cstring>

using namespace nvinfer1;

namespace {

// Expressions are opaque to the plugin, so that they come back is all there is to see.
struct Expression final : IDimensionExpr {
    Expression() = default;
    ~Expression() noexcept override = default;
};

struct Expressions final : IExprBuilder {
    Expressions() = default;
    ~Expressions() noexcept override = default;
};

template <typename Capability>
Capability* capability(void* plugin, PluginCapabilityType type)
{
    return static_cast<Capability*>(static_cast<IPluginV3*>(plugin)->getCapabilityInterface(type));
}

IPluginV3OneRuntime* runtimeOf(void* plugin)
{
    return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

std::array<PluginTensorDesc, 4> describe(int64_t tokens, int64_t q, int64_t kv, int32_t type)
{
    std::array<PluginTensorDesc, 4> described{};
    std::array<int64_t, 4> const widths{q, kv, kv, q};
    for (size_t i = 0; i < described.size(); ++i) {
        described[i].dims.nbDims = 2;
        described[i].dims.d[0] = tokens;
        described[i].dims.d[1] = widths[i];
        described[i].type = static_cast<DataType>(type);
        described[i].format = TensorFormat::kLINEAR;
    }
    return described;
}

}  // namespace

extern "C" {

/// The creator of a plugin library, from its `getCreators`.
void* drive_creator(IPluginCreatorInterface* const* (*getCreators)(int32_t&))
{
    int32_t count = 0;
    IPluginCreatorInterface* const* const found = getCreators(count);
    return count == 1 ? static_cast<IPluginCreatorV3One*>(found[0]) : nullptr;
}

/// A plugin of these fields; null where the creator refuses. Phase 0 is to build, 1 to run.
void* drive_create(void* creator, int32_t const* values, int32_t phase)
{
    std::array<PluginField, 5> const fields{PluginField{"layer", values, PluginFieldType::kINT32, 1},
        PluginField{"heads", values + 1, PluginFieldType::kINT32, 1},
        PluginField{"kv_heads", values + 2, PluginFieldType::kINT32, 1},
        PluginField{"head_dim", values + 3, PluginFieldType::kINT32, 1},
        PluginField{"version", values + 4, PluginFieldType::kINT32, 1}};
    PluginFieldCollection const given{static_cast<int32_t>(fields.size()), fields.data()};
    return static_cast<IPluginCreatorV3One*>(creator)->createPlugin(
        "node", &given, static_cast<TensorRTPhase>(phase));
}

void* drive_clone(void* plugin) { return static_cast<IPluginV3*>(plugin)->clone(); }

void* drive_attach(void* plugin) { return runtimeOf(plugin)->attachToContext(nullptr); }

/// Values and names, each with a space behind it, of what the plugin serialises; how many there are.
int32_t drive_fields(void* plugin, int32_t* values, char* names)
{
    PluginFieldCollection const* const held = runtimeOf(plugin)->getFieldsToSerialize();
    for (int32_t i = 0; i < held->nbFields; ++i) {
        values[i] = *static_cast<int32_t const*>(held->fields[i].data);
        std::strcat(names, held->fields[i].name);
        std::strcat(names, " ");
    }
    return held->nbFields;
}

/// Name, version and namespace, each with a space behind it.
void drive_names(void* plugin, char* names)
{
    auto* const core = capability<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE);
    for (char const* name : {core->getPluginName(), core->getPluginVersion(), core->getPluginNamespace()}) {
        std::strcat(names, name);
        std::strcat(names, " ");
    }
}

/// What a build asks: 4 formats, status and type of the output, outputs, status of configure, workspace,
/// status of the shapes, and whether they are those of q.
void drive_build(void* plugin, int32_t q, int32_t kv, int32_t type, int32_t* answers)
{
    auto* const build = capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
    std::array<DynamicPluginTensorDesc, 4> tensors{};
    auto const described = describe(-1, q, kv, type);
    for (size_t i = 0; i < tensors.size(); ++i) {
        tensors[i].desc = described[i];
        tensors[i].min = tensors[i].opt = tensors[i].max = described[i].dims;
    }
    for (int32_t i = 0; i < 4; ++i) {
        answers[i] = build->supportsFormatCombination(i, tensors.data(), 3, 1);
    }
    std::array<DataType, 3> const types{described[0].type, described[1].type, described[2].type};
    DataType output = DataType::kINT8;
    answers[4] = build->getOutputDataTypes(&output, 1, types.data(), 3);
    answers[5] = static_cast<int32_t>(output);
    answers[6] = build->getNbOutputs();
    answers[7] = build->configurePlugin(tensors.data(), 3, tensors.data() + 3, 1);
    answers[8] = static_cast<int32_t>(build->getWorkspaceSize(tensors.data(), 3, tensors.data() + 3, 1));
    static std::array<Expression, 6> expressions;
    static Expressions builder;
    std::array<DimsExprs, 3> inputs{};
    for (size_t i = 0; i < inputs.size(); ++i) {
        inputs[i].nbDims = 2;
        inputs[i].d[0] = &expressions[2 * i];
        inputs[i].d[1] = &expressions[2 * i + 1];
    }
    DimsExprs shape{};
    answers[9] = build->getOutputShapes(inputs.data(), 3, nullptr, 0, &shape, 1, builder);
    answers[10] = shape.nbDims == 2 && shape.d[0] == inputs[0].d[0] && shape.d[1] == inputs[0].d[1];
}

/// One run of the layer: status of the shape change where it fails, else that of enqueue.
int32_t drive_run(void* plugin, int32_t tokens, int32_t q, int32_t kv, int32_t type, void const** in, void** out,
    void* stream)
{
    IPluginV3OneRuntime* const runtime = runtimeOf(plugin);
    auto const tensors = describe(tokens, q, kv, type);
    int32_t const status = runtime->onShapeChange(tensors.data(), 3, tensors.data() + 3, 1);
    if (status != 0) {
        return status;
    }
    auto* const handle = static_cast<cudaStream_t>(stream);
    return runtime->enqueue(tensors.data(), tensors.data() + 3, in, out, nullptr, handle);
}
}
