package main

import (
	"errors"
	"log"
	"strings"

	penstock "github.com/penstock/penstock/clients/go"
)

// The most specific first: some errors are two of these.
var kinds = []struct {
	name string
	kind error
}{
	{"BudgetDoesNotFit", penstock.ErrBudgetDoesNotFit},
	{"ContextOverflow", penstock.ErrContextOverflow},
	{"InvalidRequest", penstock.ErrInvalidRequest},
	{"FeatureOff", penstock.ErrFeatureOff},
	{"NotImplementedYet", penstock.ErrNotImplementedYet},
	{"ModelNotFound", penstock.ErrModelNotFound},
	{"GenerationNotFound", penstock.ErrGenerationNotFound},
	{"Overloaded", penstock.ErrOverloaded},
	{"MessageTooLarge", penstock.ErrMessageTooLarge},
	{"DeadlineExceeded", penstock.ErrDeadlineExceeded},
	{"Unavailable", penstock.ErrUnavailable},
	{"CallerRefused", penstock.ErrCallerRefused},
	{"Cancelled", penstock.ErrCancelled},
	{"PoisonousRequest", penstock.ErrPoisonousRequest},
	{"ServerFault", penstock.ErrServerFault},
	{"BrokenStream", penstock.ErrBrokenStream},
}

func errorOf(err error) object {
	var failure *penstock.Error
	if !errors.As(err, &failure) {
		log.Fatal(err)
	}
	fields := []string{}
	for _, violation := range failure.Violations {
		fields = append(fields, violation.Field)
	}
	seen := object{
		"code":                strings.Replace(snakeUpper(failure.Code.String()), "CANCELED", "CANCELLED", 1),
		"reason":              failure.Reason,
		"fields":              fields,
		"metadata":            failure.Metadata,
		"retry_after_seconds": failure.RetryAfter.Seconds(),
	}
	for _, one := range kinds {
		if errors.Is(err, one.kind) {
			seen["type"] = one.name
			break
		}
	}
	return seen
}

// snakeUpper converts Go's names of status codes to those of gRPC.
func snakeUpper(name string) string {
	var made strings.Builder
	for at, letter := range name {
		if at > 0 && letter >= 'A' && letter <= 'Z' {
			made.WriteByte('_')
		}
		made.WriteRune(letter)
	}
	return strings.ToUpper(made.String())
}
