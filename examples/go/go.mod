module examples

go 1.24

require dialoguellm.org/go v0.0.0

replace dialoguellm.org/go => ../../bindings/go
