// A server on a reserved port, in Go without cgo. Run it with: go run server.go
package main

import (
	"errors"
	"fmt"
	"log"
	"net"
	"syscall"
	"time"
	"unsafe"
)

const (
	solPortkeep = 0x504b
	acquire     = 100
	granted     = 201
	pending     = 1
)

// Ports are in host byte order.
type request struct {
	start, count uint16 // start 0: the system chooses
	flags        uint32
}

type grant struct {
	token             uint64
	start, count      uint16
	transports, state uint8
	error             uint16
}

// reserve returns the block. It is reserved as long as the descriptor is open.
func reserve(count uint16) (owner int, block grant, err error) {
	owner, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	ask := request{count: count}
	// EINPROGRESS: particular ports outside the pool wait for the agent.
	_, _, errno := syscall.Syscall6(syscall.SYS_SETSOCKOPT, uintptr(owner), solPortkeep, acquire,
		uintptr(unsafe.Pointer(&ask)), unsafe.Sizeof(ask), 0)
	if errno != 0 && errno != syscall.EINPROGRESS {
		return owner, block, errno
	}
	for tries := 0; tries < 10000; tries++ {
		size := uint32(unsafe.Sizeof(block))
		_, _, errno = syscall.Syscall6(syscall.SYS_GETSOCKOPT, uintptr(owner), solPortkeep, granted,
			uintptr(unsafe.Pointer(&block)), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			return owner, block, errno
		}
		if block.error != 0 {
			return owner, block, syscall.Errno(block.error)
		}
		if block.state != pending {
			return
		}
		time.Sleep(time.Millisecond)
	}
	return owner, block, errors.New("the agent does not answer")
}

func main() {
	owner, block, err := reserve(2)
	if err != nil {
		log.Fatal("reserve: ", err)
	}
	defer syscall.Close(owner)

	// This process may bind the ports by number.
	server, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", block.start))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening on port", block.start)
	for {
		connection, err := server.Accept()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Fprintln(connection, "hello")
		connection.Close()
	}
}
