package penstock

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
)

// DefaultTarget is the target of Dial if neither its argument nor PENSTOCK_TARGET is set.
const DefaultTarget = "127.0.0.1:50051"

// Version is the version of this package.
const Version = "0.1.0"

// fromEnvironment sets absent options from the variables that all clients and the command line read:
// PENSTOCK_API_KEY or PENSTOCK_API_KEY_FILE, PENSTOCK_CA_FILE or PENSTOCK_TLS.
func (s *settings) fromEnvironment() error {
	if !s.keyGiven {
		s.apiKey = os.Getenv("PENSTOCK_API_KEY")
		if file := os.Getenv("PENSTOCK_API_KEY_FILE"); s.apiKey == "" && file != "" {
			key, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			s.apiKey = strings.TrimSpace(string(key))
		}
	}
	if err := checkKey(s.apiKey); err != nil {
		return err
	}
	if s.tls != nil || s.inClear {
		return nil
	}
	switch said := strings.ToLower(os.Getenv("PENSTOCK_TLS")); said {
	case "0", "false", "no", "off":
		s.inClear = true
		return nil
	case "", "1", "true", "yes", "on":
		file := os.Getenv("PENSTOCK_CA_FILE")
		if file == "" {
			if said != "" {
				WithTLS(nil)(s)
			}
			return nil
		}
		return s.trust(file)
	default:
		return fmt.Errorf("PENSTOCK_TLS must be true or false, got %s", said)
	}
}

func checkKey(key string) error {
	for _, letter := range key {
		if letter < ' ' || letter > '~' {
			return errors.New("the API key must be printable ASCII, got another character; remove line breaks and quotation marks")
		}
	}
	return nil
}

func (s *settings) trust(file string) error {
	pem, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s must have a certificate in PEM, found none", file)
	}
	WithTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12})(s)
	return nil
}
