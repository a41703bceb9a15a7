// Command box is all that the pods of scripts/kubernetes have in them.
//
//	box                          wait to be ended: the sandbox
//	box serve NAME               answer: HTTP on 8080 with NAME, or on /from with the client's address; echo on TCP 8081 and UDP 8082
//	box get URL [COUNT [SECONDS]]  the answers and how often each came; fails where one did not come in time (5 s)
//	box udp ADDRESS SECONDS PPS  packets there and back: how many were lost, and the longest gap
//	box tcp ADDRESS SECONDS MS   round trips on one connection: how often it broke, and the longest of them
//	box dns SERVER NAME TYPE     ask a name server by "udp" or "tcp", TYPE ip4 or ip6: box dns udp:10.96.0.10:53 kubernetes.default.svc.cluster.local ip4
package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	args := append(os.Args[1:], "", "", "", "")
	var err error
	switch args[0] {
	case "":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
		<-c
	case "serve":
		err = serve(args[1])
	case "get":
		err = get(args[1], max(1, number(args[2])), time.Duration(cmp.Or(number(args[3]), 5))*time.Second)
	case "udp":
		err = udp(args[1], number(args[2]), number(args[3]))
	case "tcp":
		err = tcp(args[1], time.Duration(number(args[2]))*time.Second, time.Duration(number(args[3]))*time.Millisecond)
	case "dns":
		err = dns(args[1], args[2], args[3])
	default:
		err = errors.New("see the source")
	}
	if err != nil {
		fmt.Println("box:", err)
		os.Exit(1)
	}
}

func number(s string) int { n, _ := strconv.Atoi(s); return n }

func serve(name string) error {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	go func() { <-ended; os.Exit(0) }()
	l, err := net.Listen("tcp", ":8081")
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	u, err := net.ListenPacket("udp", ":8082")
	if err != nil {
		return err
	}
	go func() {
		b := make([]byte, 2000)
		for {
			if n, from, err := u.ReadFrom(b); err == nil {
				u.WriteTo(b[:n], from)
			}
		}
	}()
	return http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/from" {
			host, _, _ := net.SplitHostPort(r.RemoteAddr)
			fmt.Fprintf(w, "%s from %s", name, host)
			return
		}
		io.WriteString(w, name)
	}))
}

func get(url string, count int, patience time.Duration) error {
	answers := map[string]int{}
	var failed error
	for range count {
		c := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
		r, err := c.Get(url)
		if err != nil {
			failed = err
			continue
		}
		b, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil {
			failed = err
			continue
		}
		answers[string(b)]++
	}
	var words []string
	for a, n := range answers {
		words = append(words, fmt.Sprintf("%s ×%d", a, n))
	}
	slices.Sort(words)
	fmt.Println(strings.Join(words, ", "))
	return failed
}

func udp(address string, seconds, pps int) error {
	c, err := net.Dial("udp", address)
	if err != nil {
		return err
	}
	got := make([]bool, seconds*pps)
	received, done := 0, make(chan bool)
	go func() {
		b := make([]byte, 2000)
		for {
			n, err := c.Read(b)
			var e net.Error
			if errors.As(err, &e) && e.Timeout() {
				break
			}
			if i := int(binary.BigEndian.Uint32(b)); err == nil && n == 64 && i < len(got) && !got[i] {
				got[i] = true
				received++
			}
		}
		close(done)
	}()
	tick := time.NewTicker(time.Second / time.Duration(pps))
	for i := range got {
		b := make([]byte, 64)
		binary.BigEndian.PutUint32(b, uint32(i))
		c.Write(b) // an error is a packet lost
		<-tick.C
	}
	c.SetReadDeadline(time.Now().Add(2 * time.Second))
	<-done
	gap, run := 0, 0
	for _, ok := range got {
		if run++; ok {
			run = 0
		}
		gap = max(gap, run)
	}
	fmt.Printf("udp: sent %d, lost %d, longest gap %d packets\n", len(got), len(got)-received, gap)
	return nil
}

func tcp(address string, length, pause time.Duration) error {
	broken, trips := 0, 0
	var worst time.Duration
	for end := time.Now().Add(length); time.Now().Before(end); {
		c, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(context.Background(), "tcp", address)
		if err != nil {
			broken++
			time.Sleep(200 * time.Millisecond)
			continue
		}
		for r := bufio.NewReader(c); time.Now().Before(end); {
			began := time.Now()
			c.SetDeadline(began.Add(30 * time.Second))
			fmt.Fprintf(c, "%d\n", trips)
			if _, err := r.ReadString('\n'); err != nil {
				broken++
				break
			}
			worst = max(worst, time.Since(began))
			trips++
			time.Sleep(pause)
		}
		c.Close()
	}
	fmt.Printf("tcp: %d round trips, %d broken connections, longest %v\n", trips, broken, worst.Round(time.Millisecond))
	if trips == 0 {
		return errors.New("no round trip at all")
	}
	return nil
}

func dns(server, name, kind string) error {
	network, address, _ := strings.Cut(server, ":")
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, address)
	}}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	list, err := r.LookupNetIP(ctx, kind, name)
	if err != nil {
		return err
	}
	fmt.Println(list)
	return nil
}
