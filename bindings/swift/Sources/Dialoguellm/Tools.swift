// Model folders made of others, and what a folder needs.

import CDialoguellm

/// What a model computes with: weights of 8 or 4 bits need half or a quarter of the memory.
public enum Precision: UInt32, Sendable { case bf16, f32, int8, int4 }

/// Hears how many of how many tensors are done, and ends the call by returning false.
public typealias Progress = @Sendable (_ done: Int, _ all: Int) -> Bool

/// Runs a call that makes a model folder.
private func making(
    _ progress: Progress?, _ call: @escaping @Sendable (dllm_progress_fn?, UnsafeMutableRawPointer?, OpaquePointer, inout OpaquePointer?) -> dllm_status
) async throws {
    final class Hearer { let hear: Progress; init(_ hear: @escaping Progress) { self.hear = hear } }
    let cancel = try Cancel()
    try await cancel.during {
        guard let progress else { return try check { call(nil, nil, cancel.handle.pointer, &$0) } }
        let hearer = Hearer(progress)
        let told: dllm_progress_fn = { user, done, all in
            Unmanaged<Hearer>.fromOpaque(user!).takeUnretainedValue().hear(Int(done), Int(all)) ? 0 : 1
        }
        try withExtendedLifetime(hearer) {
            try check { call(told, Unmanaged.passUnretained(hearer).toOpaque(), cancel.handle.pointer, &$0) }
        }
    }
}

/// Makes a model folder of a GGUF file; quantised tensors become bf16.
public func importGGUF(_ file: String, to out: String, progress: Progress? = nil) async throws {
    try await making(progress) { dllm_import_gguf(file, out, UInt32(DLLM_DTYPE_BF16), $0, $1, $2, &$3) }
}

/// Makes a model folder of a model with an adapter merged into its weights.
public func merge(model: String, adapter: String, to out: String, progress: Progress? = nil) async throws {
    try await making(progress) { dllm_merge(model, adapter, out, $0, $1, $2, &$3) }
}

/// Makes a smaller copy of a model: linear maps in whole numbers of 8 or 4 bits.
public func quantize(model: String, to out: String, bits: Int = 8, progress: Progress? = nil) async throws {
    try await making(progress) { dllm_quantize(model, out, UInt32(bits), $0, $1, $2, &$3) }
}

/// What a model needs, in bytes, and the most tokens that a conversation can have.
public struct Memory: Sendable, Equatable { public let weights, cachePerToken, context: UInt64 }

/// What a model folder will need, without opening it.
public func estimate(_ dir: String, precision: Precision = .bf16) throws -> Memory {
    var options = dllm_model_options()
    options.struct_size = UInt32(MemoryLayout.size(ofValue: options))
    options.precision = precision.rawValue
    var report = dllm_memory_report()
    report.struct_size = UInt32(MemoryLayout.size(ofValue: report))
    try check { dllm_model_estimate(dir, &options, &report, &$0) }
    return Memory(weights: report.weights, cachePerToken: report.cache_per_token, context: report.context)
}
