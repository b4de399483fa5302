package penstock

import (
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

const errorDomain = "penstock.v1"

// readDetail reads one google.rpc detail. The details are read here, field by field, because the published Go types of
// these messages differ between versions (older ones lack a violation's reason) and may be registered only once.
func (e *Error) readDetail(typeURL string, value []byte) {
	switch typeURL[strings.LastIndex(typeURL, "/")+1:] {
	case "google.rpc.ErrorInfo":
		e.readInfo(value)
	case "google.rpc.BadRequest":
		eachField(value, func(number protowire.Number, violation []byte, _ uint64) {
			if number == 1 {
				fields := texts(violation)
				e.Violations = append(e.Violations, FieldViolation{fields[1], fields[2], fields[3]})
			}
		})
	case "google.rpc.RetryInfo":
		eachField(value, func(number protowire.Number, delay []byte, _ uint64) {
			if number == 1 {
				e.RetryAfter = duration(delay)
			}
		})
	}
}

func (e *Error) readInfo(value []byte) {
	fields := texts(value)
	if fields[2] != errorDomain {
		return
	}
	e.Reason, e.Metadata = fields[1], map[string]string{}
	eachField(value, func(number protowire.Number, entry []byte, _ uint64) {
		if number == 3 {
			pair := texts(entry)
			e.Metadata[pair[1]] = pair[2]
		}
	})
}

func duration(value []byte) time.Duration {
	var total time.Duration
	eachField(value, func(number protowire.Number, _ []byte, varint uint64) {
		switch number {
		case 1:
			total += time.Duration(varint) * time.Second
		case 2:
			total += time.Duration(int32(varint))
		}
	})
	return total
}

// texts returns the length-delimited fields of a message by number, the last of each.
func texts(value []byte) map[protowire.Number]string {
	found := map[protowire.Number]string{}
	eachField(value, func(number protowire.Number, text []byte, _ uint64) { found[number] = string(text) })
	return found
}

// eachField visits the fields of a message until its end or its first malformed byte.
func eachField(value []byte, visit func(number protowire.Number, bytes []byte, varint uint64)) {
	for len(value) > 0 {
		number, kind, length := protowire.ConsumeTag(value)
		if length < 0 {
			return
		}
		value = value[length:]
		var bytes []byte
		var varint uint64
		switch kind {
		case protowire.BytesType:
			bytes, length = protowire.ConsumeBytes(value)
		case protowire.VarintType:
			varint, length = protowire.ConsumeVarint(value)
		default:
			length = protowire.ConsumeFieldValue(number, kind, value)
		}
		if length < 0 {
			return
		}
		visit(number, bytes, varint)
		value = value[length:]
	}
}
