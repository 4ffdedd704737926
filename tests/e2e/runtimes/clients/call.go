// `call URL` prints the answer's body; without a URL, that of each line that it is told.
package main

import (
	"bufio"
	"io"
	"log"
	"net/http"
	"os"
)

func call(url string) {
	answer, err := http.Get(url)
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	if _, err := io.Copy(os.Stdout, answer.Body); err != nil {
		log.Fatal(err)
	}
}

func main() {
	if len(os.Args) > 1 {
		call(os.Args[1])
		return
	}
	for told := bufio.NewScanner(os.Stdin); told.Scan(); {
		call(told.Text())
	}
}
