// swift-tools-version: 6.0
// not in a folder "swift": the package it needs has that name for SwiftPM, by its folder
import PackageDescription

let package = Package(
    name: "examples",
    dependencies: [.package(path: "../../bindings/swift")],
    targets: ["01_label", "02_live", "03_train", "04_batch", "05_adapters"].map {
        .executableTarget(name: $0, dependencies: [.product(name: "Dialoguellm", package: "swift")])
    }
)
