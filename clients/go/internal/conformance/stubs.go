package main

import (
	"encoding/json"
	"log"
	"os"

	pb "github.com/penstock/penstock/clients/go/penstockv1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// printStubs prints the protos from which the stubs were generated.
func printStubs() {
	files := map[string][]byte{}
	for _, file := range []protoreflect.FileDescriptor{
		pb.File_penstock_v1_error_reason_proto, pb.File_penstock_v1_generation_proto,
		pb.File_penstock_v1_model_proto, pb.File_penstock_v1_routing_proto,
	} {
		data, err := proto.Marshal(protodesc.ToFileDescriptorProto(file))
		if err != nil {
			log.Fatal(err)
		}
		files[file.Path()] = data
	}
	if err := json.NewEncoder(os.Stdout).Encode(files); err != nil {
		log.Fatal(err)
	}
}
