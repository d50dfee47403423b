#if canImport(Darwin)
import Darwin
#else
import Glibc
#endif

/// Runs work on a thread of its own: a call of the library may take long, and Swift's own threads are few.
func onAThread(_ work: @escaping @Sendable () -> Void) {
    final class Work { let run: @Sendable () -> Void; init(_ run: @escaping @Sendable () -> Void) { self.run = run } }
    #if canImport(Darwin)
    var thread: pthread_t?
    #else
    var thread = pthread_t()
    #endif
    let box = Unmanaged.passRetained(Work(work))
    let failed = pthread_create(&thread, nil, { box in
        #if canImport(Darwin)
        Unmanaged<Work>.fromOpaque(box).takeRetainedValue().run()
        #else
        Unmanaged<Work>.fromOpaque(box!).takeRetainedValue().run()
        #endif
        return nil
    }, box.toOpaque())
    guard failed == 0 else { return box.takeRetainedValue().run() }
    #if canImport(Darwin)
    pthread_detach(thread!)
    #else
    pthread_detach(thread)
    #endif
}
