package catalog

import "weft/encap/sealed"

// GenerateKey makes a node's private key in a new file of mode 0600 and returns the public one.
func GenerateKey(file string) (public string, err error) { return publish(sealed.GenerateKey(file)) }

// ShowKey returns the public key of a private key file.
func ShowKey(file string) (public string, err error) { return publish(sealed.LoadKey(file)) }

func publish(private [32]byte, err error) (string, error) {
	if err != nil {
		return "", err
	}
	public, err := sealed.PublicKey(private)
	return sealed.EncodeKey(public), err
}
