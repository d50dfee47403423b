// swift-tools-version: 6.0
import PackageDescription

let package = Package(
    name: "Dialoguellm",
    products: [.library(name: "Dialoguellm", targets: ["Dialoguellm"])],
    targets: [
        // the installed library, found by pkg-config
        .systemLibrary(name: "CDialoguellm", pkgConfig: "dialoguellm"),
        .target(name: "Dialoguellm", dependencies: ["CDialoguellm"]),
        .testTarget(name: "DialoguellmTests", dependencies: ["Dialoguellm"]),
    ]
)
