// A control loop in C++: asks one question after the other for some seconds, and writes how long each took.
//
//   client ADDRESS unary|stream SECONDS REQUESTS
//
// REQUESTS holds the serialized cvpo.v1.ActRequest, OpenSession and ControlStep, each after its length as a decimal
// line. stdout gets one wait per line, in microseconds; an answer that is none ends the program with exit code 1.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "cvpo/v1/control.grpc.pb.h"
#include "cvpo/v1/policy.grpc.pb.h"

namespace {

using Clock = std::chrono::steady_clock;

template <typename Message>
Message Read(std::istream& in) {
  std::string line;
  std::getline(in, line);
  std::string bytes(std::stoul(line), '\0');
  in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  Message message;
  if (!in || !message.ParseFromString(bytes)) throw std::runtime_error("REQUESTS cannot be read");
  return message;
}

[[noreturn]] void Fail(const std::string& what) { throw std::runtime_error(what); }

template <typename Ask>
std::vector<double> Hurry(double seconds, Ask ask) {
  std::vector<double> waits;
  ask();  // connects
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  for (auto now = Clock::now(); now < end;) {
    ask();
    const auto then = Clock::now();
    waits.push_back(std::chrono::duration<double, std::micro>(then - now).count());
    now = then;
  }
  return waits;
}

std::vector<double> Unary(const std::shared_ptr<grpc::Channel>& channel, double seconds,
                          const cvpo::v1::ActRequest& request) {
  const auto stub = cvpo::v1::PolicyService::NewStub(channel);
  return Hurry(seconds, [&] {
    grpc::ClientContext context;
    cvpo::v1::ActResponse response;
    const auto status = stub->Act(&context, request, &response);
    if (!status.ok()) Fail(status.error_message());
  });
}

std::vector<double> Stream(const std::shared_ptr<grpc::Channel>& channel, double seconds,
                           const cvpo::v1::OpenSession& opening, const cvpo::v1::ControlStep& step) {
  const auto stub = cvpo::v1::ControlService::NewStub(channel);
  grpc::ClientContext context;
  const auto stream = stub->Control(&context);
  cvpo::v1::ControlRequest request;
  cvpo::v1::ControlResponse response;
  *request.mutable_open() = opening;
  if (!stream->Write(request) || !stream->Read(&response)) Fail(stream->Finish().error_message());
  cvpo::v1::ControlRequest steps[2];  // in turns: a value that repeats is taken for frozen
  for (auto& each : steps) *each.mutable_step() = step;
  for (auto& value : *steps[1].mutable_step()->mutable_observation()) value = std::nextafter(value, value > 0 ? 0.0f : 1.0f);
  auto number = response.opened().next_step();
  auto waits = Hurry(seconds, [&] {
    auto& next = steps[number % 2];
    next.mutable_step()->set_step(number++);
    if (!stream->Write(next) || !stream->Read(&response)) Fail(stream->Finish().error_message());
    if (!response.has_result()) Fail("no result: " + response.ShortDebugString());
  });
  stream->WritesDone();
  return waits;
}

}  // namespace

int main(int count, char** arguments) try {
  if (count != 5) Fail("usage: client ADDRESS unary|stream SECONDS REQUESTS");
  const std::string way = arguments[2];
  const double seconds = std::stod(arguments[3]);
  std::ifstream in(arguments[4], std::ios::binary);
  const auto act = Read<cvpo::v1::ActRequest>(in);
  const auto opening = Read<cvpo::v1::OpenSession>(in);
  const auto step = Read<cvpo::v1::ControlStep>(in);
  const auto channel = grpc::CreateChannel(arguments[1], grpc::InsecureChannelCredentials());
  for (const double wait :
       way == "stream" ? Stream(channel, seconds, opening, step) : Unary(channel, seconds, act)) {
    std::printf("%.1f\n", wait);
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
