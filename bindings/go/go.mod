module dialoguellm.org/go

go 1.24
