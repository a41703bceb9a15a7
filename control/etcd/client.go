package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const (
	// dialTimeout bounds one connection attempt, keepalive how long a dead connection goes unnoticed.
	// etcd refuses pings more often than every 5 s.
	dialTimeout      = 3 * time.Second
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
	// requestTimeout bounds a request, askTimeout the question whether all is well; pageSize is how many keys one answer has at most.
	requestTimeout = 5 * time.Second
	askTimeout     = 3 * time.Second
	pageSize       = 2000
)

// dial makes a client. It does not wait for a connection: an error is one of the settings.
func dial(s Settings) (client *clientv3.Client, hangUp func(), err error) {
	config := clientv3.Config{
		Endpoints: s.Endpoints, DialTimeout: dialTimeout, DialKeepAliveTime: keepaliveTime, DialKeepAliveTimeout: keepaliveTimeout,
		PermitWithoutStream: true, RejectOldCluster: false, Logger: zap.NewNop(), Username: s.Username,
	}
	secure := strings.HasPrefix(s.Endpoints[0], "https://")
	for _, e := range s.Endpoints {
		if strings.HasPrefix(e, "https://") != secure {
			return nil, nil, errors.New("etcd: control.etcd.endpoints mixes http and https: write all of them with https")
		}
	}
	if secure {
		t, err := tlsConfig(s)
		if err != nil {
			return nil, nil, err
		}
		config.TLS = t
	}
	if s.PasswordFile != "" {
		password, err := os.ReadFile(s.PasswordFile)
		if err != nil {
			return nil, nil, fmt.Errorf("etcd: control.etcd.password_file: %w", err)
		}
		config.Password = strings.TrimRight(string(password), "\r\n")
	}
	c, err := clientv3.New(config)
	if err != nil {
		return nil, nil, fmt.Errorf("etcd: %w", err)
	}
	return c, func() { c.Close() }, nil
}

func tlsConfig(s Settings) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, fmt.Errorf("etcd: control.etcd.ca_file: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("etcd: control.etcd.ca_file: %s holds no certificate in PEM", s.CAFile)
		}
	}
	if s.CertFile == "" {
		return t, nil
	}
	if _, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile); err != nil {
		return nil, fmt.Errorf("etcd: control.etcd.cert_file, key_file: %w", err)
	}
	// Read at every handshake, so that a renewed certificate needs no restart.
	t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
		return &cert, err
	}
	return t, nil
}

// hopeless says that trying again cannot help: the server answered, and it refuses us.
func hopeless(err error) bool {
	return errors.Is(err, errConfiguration) || errors.Is(err, rpctypes.ErrAuthFailed) || errors.Is(err, rpctypes.ErrPermissionDenied) ||
		errors.Is(err, rpctypes.ErrAuthNotEnabled) || errors.Is(err, rpctypes.ErrUserEmpty)
}

// told says an error in words that name a remedy.
func (s Settings) told(err error) string {
	at := strings.Join(s.Endpoints, ", ")
	switch {
	case errors.Is(err, rpctypes.ErrAuthFailed), errors.Is(err, rpctypes.ErrUserEmpty), errors.Is(err, rpctypes.ErrAuthNotEnabled):
		return fmt.Sprintf("etcd at %s refuses this node: %v: correct control.etcd.username and password_file", at, err)
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return fmt.Sprintf("etcd at %s refuses this node: %v: grant user %q read and write below %s", at, err, s.Username, s.Prefix)
	case errors.Is(err, errConfiguration), errors.Is(err, errStore):
		return err.Error()
	}
	text := strings.TrimPrefix(err.Error(), context.DeadlineExceeded.Error()+": ")
	return fmt.Sprintf("etcd at %s does not answer: %s: start it, or correct control.etcd", at, text)
}

var (
	// errConfiguration marks what a person has to mend in a file or in the store before anything works.
	errConfiguration = errors.New("configuration")
	// errStore marks what is wrong with the data.
	errStore = errors.New("etcd")
)
