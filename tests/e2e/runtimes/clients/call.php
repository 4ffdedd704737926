<?php
// `call.php LIBRARY URL` prints the answer's body.
[, $library, $url] = $argv;
if ($library === "streams") {
    $body = file_get_contents($url);
} else {
    $curl = curl_init($url);
    curl_setopt($curl, CURLOPT_RETURNTRANSFER, true);
    $body = curl_exec($curl);
    fwrite(STDERR, curl_error($curl));
}
echo $body;
exit($body === false ? 1 : 0);
