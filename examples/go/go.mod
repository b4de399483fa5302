module github.com/penstock/penstock/examples/go

go 1.25.0

require github.com/penstock/penstock/clients/go v0.1.0

replace github.com/penstock/penstock/clients/go => ../../clients/go
