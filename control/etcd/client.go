package etcd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"weft/internal/secretfile"
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

// dial makes a client. Where there is no user it does not wait for a connection. An error of the
// settings is an errConfiguration.
func dial(s Settings) (client *clientv3.Client, hangUp func(), err error) {
	config := clientv3.Config{
		Endpoints: s.Endpoints, DialTimeout: dialTimeout, DialKeepAliveTime: keepaliveTime, DialKeepAliveTimeout: keepaliveTimeout,
		PermitWithoutStream: true, RejectOldCluster: false, Logger: zap.NewNop(), Username: s.Username,
	}
	secure := strings.HasPrefix(s.Endpoints[0], "https://")
	for _, e := range s.Endpoints {
		if strings.HasPrefix(e, "https://") != secure {
			return nil, nil, fmt.Errorf("%w: control.etcd.endpoints mixes http and https: write all of them with https", errConfiguration)
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
		password, err := secretfile.Read(s.PasswordFile, 4096)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: control.etcd.password_file: %w", errConfiguration, err)
		}
		config.Password = strings.TrimRight(string(password), "\r\n")
	}
	c, err := clientv3.New(config) // with a user it asks the server for a token
	if err != nil {
		return nil, nil, err
	}
	return c, func() { c.Close() }, nil
}

func tlsConfig(s Settings) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, fmt.Errorf("%w: control.etcd.ca_file: %w", errConfiguration, err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%w: control.etcd.ca_file: %s holds no certificate in PEM", errConfiguration, s.CAFile)
		}
	}
	if s.CertFile == "" {
		return t, nil
	}
	if _, err := s.certificate(); err != nil {
		return nil, fmt.Errorf("%w: control.etcd.cert_file, key_file: %w", errConfiguration, err)
	}
	// Read at every handshake, so that a renewed certificate needs no restart.
	t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, err := s.certificate()
		return &cert, err
	}
	return t, nil
}

// certificate reads this node's certificate and its key.
func (s Settings) certificate() (c tls.Certificate, err error) {
	cert, err := os.ReadFile(s.CertFile)
	if err != nil {
		return c, err
	}
	key, err := secretfile.Read(s.KeyFile, 1<<20)
	if err != nil {
		return c, err
	}
	return tls.X509KeyPair(cert, key)
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
	text := err.Error()
	if why := s.unreachable(); why != nil {
		text = why.Error()
	}
	return fmt.Sprintf("etcd at %s does not answer: %s: start it, or correct control.etcd", at, text)
}

// unreachable says why no connection can be had, which the client keeps to itself; nil where one can.
func (s Settings) unreachable() error {
	var errs []error
	for _, e := range s.Endpoints {
		u, err := url.Parse(e)
		if err != nil {
			return err
		}
		dialer := &net.Dialer{Timeout: time.Second}
		var conn net.Conn
		if u.Scheme == "https" {
			var t *tls.Config
			if t, err = tlsConfig(s); err == nil {
				conn, err = tls.DialWithDialer(dialer, "tcp", u.Host, t)
			}
		} else {
			conn, err = dialer.Dial("tcp", u.Host)
		}
		if err == nil {
			conn.Close()
			return nil
		}
		errs = append(errs, err)
	}
	return errs[0]
}

var (
	// errConfiguration marks what a person has to mend in a file or in the store before anything works.
	errConfiguration = errors.New("configuration")
	// errStore marks what is wrong with the data.
	errStore = errors.New("etcd")
)
