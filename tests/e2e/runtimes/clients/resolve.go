// `resolve NAME` prints its addresses, as Go's own resolver finds them.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
)

func main() {
	resolver := net.Resolver{PreferGo: true}
	found, err := resolver.LookupHost(context.Background(), os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for _, address := range found {
		fmt.Println(address)
	}
}
